"""Codecs and adapter files against their peers."""
