"""Adapters: methods, the shared base they sit on, and how they are aggregated."""

from fedpeft.adapters.attach import Attached, attach, detach
from fedpeft.adapters.card import CardFacts, write_card
from fedpeft.adapters.export import export
from fedpeft.adapters.factors import FactorLaw, FactorState
from fedpeft.adapters.mean import Contribution, mean_step, naive_warning, product_error, weighted_sum
from fedpeft.adapters.merge import merge
from fedpeft.adapters.methods import METHODS, AdapterMethod, Traits, method_of, rank_of

__all__ = [
    "METHODS",
    "AdapterMethod",
    "Attached",
    "CardFacts",
    "Contribution",
    "FactorLaw",
    "FactorState",
    "Traits",
    "attach",
    "detach",
    "export",
    "mean_step",
    "merge",
    "method_of",
    "naive_warning",
    "product_error",
    "rank_of",
    "weighted_sum",
    "write_card",
]
