"""Files: written whole or not at all, locked, and without secrets."""
