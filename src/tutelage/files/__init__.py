"""Files on disk: written whole or not at all, hashed, locked, and free of secrets."""
