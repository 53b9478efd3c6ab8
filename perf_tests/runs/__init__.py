"""Saved runs: what they hold, and reading, finding, merging and keeping them. Knows neither torch nor Whisper."""
