"""The components: what a round of each does, and what of its output must equal the original's. One file each."""
