"""Codecs: from values to the payload of an envelope, and back."""
