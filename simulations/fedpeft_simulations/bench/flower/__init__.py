"""Flower's own programs as peers; private names of Flower stay in folders of this name."""
