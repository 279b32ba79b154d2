"""Benchmarks that print the figures of ``docs/benchmarks.md``; each runs the installed command line."""
