"""Accountants, private training, the ledger."""
