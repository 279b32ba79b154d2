"""A real base and real text: what the platform reaches where nothing was made for it."""
