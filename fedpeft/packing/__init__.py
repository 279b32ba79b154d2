"""Compressed adapter files from any PEFT folder, and a library of them."""
