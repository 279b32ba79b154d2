"""What leaves a node: the gate that every reply passes, and the logs of it."""
