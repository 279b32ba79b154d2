"""The node's own record of privacy spent: append-only, chained, signed, written before data are opened."""

from fedpeft.privacy.ledger.book import Ledger, Reservation
from fedpeft.privacy.ledger.chain import Chain, Entry, Head
from fedpeft.privacy.ledger.spending import Budget

__all__ = ["Budget", "Chain", "Entry", "Head", "Ledger", "Reservation"]
