"""This model against its bars and its peers: faster-whisper (CTranslate2) and openai-whisper. An optional group."""
