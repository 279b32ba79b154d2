"""What an attack achieved: measures, scores, verdicts and findings."""
