"""What every room of the suite may use. Imports neither torch nor pytest."""
