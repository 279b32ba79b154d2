"""Held-out loss and accuracy of a state or of an exported adapter."""
