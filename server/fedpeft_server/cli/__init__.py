"""``fedpeft server``: the coordinator's command line."""
