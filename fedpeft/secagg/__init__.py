"""Secure aggregation: the coordinator learns the sum of the nodes' integers and nothing else."""

from fedpeft.secagg.context import MOST_NODES, SecureContext
from fedpeft.secagg.coordinator import CoordinatorRound
from fedpeft.secagg.errors import SecureAggregationError, TermsRefused
from fedpeft.secagg.integers import bits_for, from_residues, to_residues
from fedpeft.secagg.node import advertise, agree, check_inbox, mask, reveal, share
from fedpeft.secagg.release_store import ReleaseStore
from fedpeft.secagg.state import Member, NodeSecrets
from fedpeft.secagg.terms import check_roster

__all__ = [
    "MOST_NODES",
    "CoordinatorRound",
    "Member",
    "NodeSecrets",
    "ReleaseStore",
    "SecureAggregationError",
    "SecureContext",
    "TermsRefused",
    "advertise",
    "agree",
    "bits_for",
    "check_inbox",
    "check_roster",
    "from_residues",
    "mask",
    "reveal",
    "share",
    "to_residues",
]
