"""Token extraction from an update: span check, matching pursuit and sparse recovery."""
