"""The verdict on a run beside another: what got slower, larger or wrong. Knows neither torch nor Whisper."""
