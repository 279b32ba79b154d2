"""What leaves a node: the gate that every reply passes, and the records that remember it."""
