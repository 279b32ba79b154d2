"""What leaves a node and what comes back: updates, transforms, plans, codecs and envelopes."""
