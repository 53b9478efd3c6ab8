"""This model against the original and its peers: faster-whisper (CTranslate2) and openai-whisper. An optional group."""
