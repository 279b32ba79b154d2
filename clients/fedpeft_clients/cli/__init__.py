"""``fedpeft node``: an organisation's command line."""
