"""How much the attacks recover."""
