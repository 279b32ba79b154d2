"""The node's own record of privacy spent: append-only, chained, signed, written before data are opened."""

from fedpeft.privacy.ledger.budget import Budget
from fedpeft.privacy.ledger.chain import Chain, Entry, Head
from fedpeft.privacy.ledger.ledger import Ledger, Reservation

__all__ = ["Budget", "Chain", "Entry", "Head", "Ledger", "Reservation"]
