"""Secure aggregation against Flower's."""
