"""Options: one frozen dataclass for each command."""
