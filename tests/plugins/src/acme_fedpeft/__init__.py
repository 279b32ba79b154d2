"""Plug-ins for fedpeft from outside its tree."""
