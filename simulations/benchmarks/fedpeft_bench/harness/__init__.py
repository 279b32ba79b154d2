"""What all benchmarks share: command, timing, sealing."""
