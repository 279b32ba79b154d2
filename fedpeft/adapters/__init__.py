"""Adapters: methods, and the shared base they sit on."""

from fedpeft.adapters.attach import Attached, attach, detach
from fedpeft.adapters.card import CardFacts, write_card
from fedpeft.adapters.export import export
from fedpeft.adapters.merge import merge
from fedpeft.adapters.methods.base import (
    AdapterMethod,
    PackingRoles,
    Spec,
    TokenRows,
    Traits,
    method_of,
    rank_of,
)

__all__ = [
    "AdapterMethod",
    "Attached",
    "CardFacts",
    "PackingRoles",
    "Spec",
    "TokenRows",
    "Traits",
    "attach",
    "detach",
    "export",
    "merge",
    "method_of",
    "rank_of",
    "write_card",
]
