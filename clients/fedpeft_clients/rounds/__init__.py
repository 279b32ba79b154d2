"""One round in the node: from a coordinator's message to a sealed update."""
