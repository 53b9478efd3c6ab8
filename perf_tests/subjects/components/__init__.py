"""Parts of the model as subjects."""
