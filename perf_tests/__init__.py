"""The performance suite: it proves, commit after commit, that the flash Whisper is right, fast and lean."""
