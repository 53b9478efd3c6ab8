"""What is measured: models with their weights and input, whole or in parts, and if they compute the right thing."""
