"""What an audit looks at: views of a run, the same without protections, and how strong each attack is."""
