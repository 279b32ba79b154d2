"""Add an aggregation rule of your own and run a federation that uses it.

A rule turns the updates of a round into one step. It declares what it needs to see: a rule that reads single
updates is refused where nobody may look at them. A package registers its rules by an entry point in the group
`fedpeft.aggregation_rules`; a notebook registers them for its own process, as here.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft import AggregationRule, register_aggregation_rule
from fedpeft_simulations import simulate


@dataclass(frozen=True)
class SignVote(AggregationRule):
    """Each value moves by the mean magnitude, to the side that most nodes vote for.

    A node that lies has one vote, however long its update is (after signSGD with majority vote, Bernstein et
    al. 2018).
    """

    reads_singles = True  # the sign of each update counts by itself
    compares_values = True  # a value must mean the same on all nodes
    needs_dense = False  # a value that was not sent is no vote

    def mean(self, size, contributions):
        """The step, float64, shape (size,); the rule of the next round; and facts to publish."""
        votes, total, nodes = np.zeros(size), np.zeros(size), 0
        for _, _, decoded in contributions:
            values = decoded.dense()
            votes += np.sign(values)
            total += np.abs(values)
            nodes += 1
        return np.sign(votes) * total / nodes, self, {"undecided": float(np.mean(votes == 0))}


register_aggregation_rule("sign-vote", SignVote)

settings = {
    "federation.robust": "sign-vote",
    "federation.nodes": 3,
    "federation.rounds": 2,
    "federation.local_steps": 1,
    "federation.batch_size": 4,
    "data.samples": 16,
    "data.test_samples": 8,
    "adapter.rank": 4,
    "run.baselines": [],
    "audit.enabled": False,
}
run = simulate("embedded", settings, out="runs/own-rule", mode="overwrite").result()
print(run.rounds[["replies", "bytes_up", "loss"]])
