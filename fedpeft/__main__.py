"""``python -m fedpeft``: the command line."""

from fedpeft.cli import main

main()
