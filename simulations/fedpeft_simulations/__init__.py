"""Whole federations on one machine: organisations, runner, comparison arms, benchmarks."""
