"""Whole federations: accuracy, participation, memory, kills."""
