"""Secure aggregation: the coordinator learns the sum of the nodes' integers and nothing else."""

from fedpeft.secagg.context import MOST_NODES, SecureContext, check_policy
from fedpeft.secagg.coordinator import CoordinatorRound
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.integers import bits_for, from_residues, to_residues
from fedpeft.secagg.node import advertise, agree, mask, reveal, share
from fedpeft.secagg.state import Member, NodeSecrets
from fedpeft.secagg.store import ReleaseStore

__all__ = [
    "MOST_NODES",
    "CoordinatorRound",
    "Member",
    "NodeSecrets",
    "ReleaseStore",
    "SecureAggregationError",
    "SecureContext",
    "advertise",
    "agree",
    "bits_for",
    "check_policy",
    "from_residues",
    "mask",
    "reveal",
    "share",
    "to_residues",
]
