"""The audit: views, attacks, baselines, verdicts, and the report that a privacy officer reads."""
