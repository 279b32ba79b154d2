"""The coordinator: round loop, aggregation, checkpoints, ServerApp."""
