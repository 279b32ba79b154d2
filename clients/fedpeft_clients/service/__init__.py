"""The process that serves a coordinator."""
