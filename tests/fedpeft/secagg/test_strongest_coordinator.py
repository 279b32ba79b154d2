"""What a coordinator and its colluders can make of one round, by enumeration, and the epsilon that results.

The adversary chooses who takes part, who is said to have dropped, how many attempts a round has and whom of
the others it asks to open which; colluders sign and let go whatever helps, as often as it does. `Game` finds
what it can open by asking the nodes' real code; `effective` says how much noise covers one node in all of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedpeft.cohort import Cohort
from fedpeft.config import build_config
from fedpeft.errors import ConfigError
from fedpeft.privacy import plan_from_config
from fedpeft.secagg import SecureAggregationError, advertise
from fedpeft.trust import Signer
from tests.fedpeft.secagg.adversary import Disk, Game, plays, subsets

VALUES = 400


def effective(opened, honest, victim):
    """Shares of noise that cover a node: of the best unbiased estimate from all sums that were opened.

    The adversary knows everybody's values but the victim's, and the colluders' noise; a sum's noise is that
    of the others in it. With covariances ``K`` of the sums that hold the victim, the estimate of least
    variance has ``1 / (1' K^-1 1)``, in shares of one node. Equal sums count once.
    """
    sums = {frozenset(found) & frozenset(honest) for found in opened if victim in found}
    if not sums:
        return math.inf
    covariance = np.array([[len(one & other) for other in sums] for one in sums], float)
    return 1 / np.linalg.pinv(covariance).sum()


@cache
def _plan(nodes, threshold, least_nodes, colluders, rounds=3):
    secure = {"enabled": True, "bits": 32, "threshold": threshold}
    return plan_from_config(
        build_config(
            {
                "privacy": {
                    "unit": "node",
                    "trust": "distributed",
                    "epsilon": 8.0,
                    "max_noise_to_signal": 1e9,
                },
                "federation": {"nodes": nodes, "rounds": rounds},
                "exchange": {
                    "up": {"codec": "ternary", "error_feedback": False},
                    "secure": {**secure, "min_nodes": least_nodes, "colluders": colluders},
                },
            }
        ),
        VALUES,
    )


def plan_of(cohort, rounds=3):
    return _plan(cohort.nodes, cohort.threshold / cohort.nodes, cohort.least_nodes, cohort.colluders, rounds)


def epsilon_of(plan, shares):
    """Epsilon where a sum holds so many shares of noise, each of the size that every node adds."""
    noise = plan.noise_multiplier * math.sqrt(shares / plan.grid.least_nodes)
    return plan.with_noise(noise).epsilon()


def cohorts(nodes, shares=(0.51, 0.67, 0.8, 1.0)):
    """All that a config of so many nodes can agree to, for some thresholds."""
    found = set()
    for least, colluders, share_ in itertools.product(range(2, nodes + 1), range(nodes), shares):
        threshold = max(math.ceil(share_ * nodes - 1e-9), (nodes + colluders) // 2 + 1)
        try:
            found.add(Cohort(nodes, threshold, least, colluders))
        except ConfigError:
            continue
    return sorted(found, key=lambda one: (one.colluders, one.threshold, one.least_nodes))


def openable(cohort, survivors, revealers):
    """The same by counting, for federations that are too large to play: attempts that are opened.

    An attempt opens with ``threshold`` shares, the colluders' among them, over a set of at least ``quorum``.
    """
    return [
        at
        for at, (group, asked) in enumerate(zip(survivors, revealers, strict=True))
        if len(group) >= cohort.quorum and len(asked) + cohort.colluders >= cohort.threshold and asked
    ]


SMALL = [cohort for nodes in (2, 3, 4) for cohort in cohorts(nodes)]
QUICK = (Cohort(3, 2, 2, 0), Cohort(3, 3, 2, 1), Cohort(4, 3, 2, 1), Cohort(4, 4, 2, 2))
"""Of one number of nodes and another, none, one and two of them on the coordinator's side."""


@pytest.mark.parametrize(
    "cohort",
    [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow, id=str(one)) for one in SMALL],
)
def test_no_play_of_a_small_round_opens_more_than_is_accounted_for(cohort):
    """All who take part, all survivors, all ways to ask the others to open two attempts."""
    least = math.inf
    for present in _taking_part(cohort):
        game = Game(cohort, present)
        for survivors, revealers in plays(game):
            opened = game.play(survivors, revealers)
            assert opened == openable(cohort, survivors, revealers) and len(opened) <= 1
            least = min(least, effective([survivors[at] for at in opened], game.honest, game.honest[0]))
    assert least == cohort.honest >= cohort.least_nodes
    plan = plan_of(cohort)
    assert plan.grid.colluders == cohort.colluders
    assert epsilon_of(plan, least) == pytest.approx(plan.epsilon(), rel=1e-9)
    assert plan.epsilon() <= 8.0


def _taking_part(cohort):
    """Who exchanges keys in two attempts: all in the first, some in the second."""
    names = Game(cohort).names
    others = names[: cohort.nodes - cohort.colluders]
    for count in range(cohort.quorum - cohort.colluders, len(others) + 1):
        yield [names, [*others[:count], *names[len(others) :]]]
        if 0 < count < len(others):
            yield [names, [*others[1 : count + 1], *names[len(others) :]]]


@pytest.mark.parametrize("nodes", [*range(5, 13), 20, 50, 127])
def test_epsilon_is_never_above_the_print(nodes):
    """By counting over every threshold, least number, number of colluders, set of survivors and of revealers.

    Nodes that do not collude are alike but for the victim, so numbers of them say all: how many sums of one
    round can be opened, and how few others the smallest one holds.
    """
    every = range(5, 13)
    for cohort in cohorts(nodes, (0.51, 0.67, 1.0) if nodes in every else (0.67,)):
        others = cohort.nodes - cohort.colluders
        each = max(1, cohort.threshold - cohort.colluders)
        assert others // each == 1, f"{cohort} opens {others // each} sums of one round"
        held = [
            size - inside
            for size in range(cohort.quorum, nodes + 1)
            for inside in range(cohort.colluders + 1)
        ]
        fewest = min(count for count in held if 1 <= count <= others)
        assert fewest == cohort.honest >= cohort.least_nodes
        if nodes in (5, 8, 20) and cohort.threshold == max(
            math.ceil(0.67 * nodes), (nodes + cohort.colluders) // 2 + 1
        ):
            plan = plan_of(cohort)
            found = {count: epsilon_of(plan, count) for count in {fewest, others}}
            assert max(found.values()) <= plan.epsilon() * (1 + 1e-12) <= 8.0


def test_all_other_rosters_are_refused_by_every_node():
    """Every subset of the roster, and each with a stranger in a node's place, under every threshold."""
    game = Game(Cohort(5, 4, 2, 1))
    stranger, tried = Signer.generate().public, 0
    for names in subsets(game.names):
        whole = {name: game.roster[name] for name in names}
        for roster in (
            whole,
            {**whole, "sybil": stranger},
            {**whole, **dict.fromkeys(list(whole)[:1], stranger)},
        ):
            for threshold in range(1, len(roster) + 1):
                if roster == game.roster and threshold == 4:
                    continue
                tried += 1
                for name in set(game.honest) & set(roster):
                    with pytest.raises(SecureAggregationError):
                        table = tuple(sorted(roster.items()))
                        changes = {"roster": table, "threshold": threshold, "attempt": 9}
                        advertise(replace(game.context(9), **changes), game.members[name])
    assert tried > 200


@pytest.mark.parametrize("count", [4, 5])
def test_the_memory_of_the_games_does_what_the_store_on_disk_does(tmp_path, count):
    """One sum is opened over the real `ReleaseStore`, and no second one afterwards, by nobody."""
    game = Game(Cohort(5, 4, 2, 1))
    survivors = [set(game.names[-count:]), set(game.names)]
    first = sorted(survivors[0] & set(game.honest))
    assert game.play(survivors, [first, []]) == [0]
    game.stores |= {name: Disk(tmp_path / name) for name in game.honest}
    assert game.play(survivors, [first, []]) == [0]
    assert game.play(survivors, [[], game.honest]) == []


# The enumeration is no proof of itself: terms that are weaker by one are found out by it.


def unsound(monkeypatch, *numbers):
    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "__post_init__", lambda self: None)
        return Cohort(*numbers)


@pytest.mark.parametrize(
    ("numbers", "shares"),
    [((2, 1, 1, 0), 1), ((3, 2, 1, 1), 1), ((4, 3, 1, 2), 1)],
    ids=["half of the roster", "one colluder of three", "two colluders of four"],
)
def test_a_threshold_that_is_too_low_by_one_opens_two_sums(monkeypatch, numbers, shares):
    cohort = unsound(monkeypatch, *numbers)
    monkeypatch.setattr(Cohort, "__post_init__", lambda self: None)
    game, most, least = Game(cohort), 0, math.inf
    for survivors, revealers in plays(game):
        opened = game.play(survivors, revealers)
        most = max(most, len(opened))
        least = min(least, effective([survivors[at] for at in opened], game.honest, game.honest[0]))
    assert most == 2 and least <= shares


def test_colluders_who_count_as_noise_raise_epsilon_above_the_print():
    """What was claimed before: noise of ``least_nodes`` among those that survive, whoever they are."""
    cohort = Cohort(10, 7, 3, 3)
    plan = plan_of(cohort)
    assert plan.grid.least_nodes == cohort.honest == 4
    counted = replace(plan, grid=replace(plan.grid, least_nodes=cohort.quorum))
    assert epsilon_of(counted, cohort.honest) > 1.2 * plan.epsilon()
    old = replace(plan, grid=replace(plan.grid, least_nodes=3))
    estimate = effective([{"A", "B", "C", "D"}, {"A", "E", "F", "G"}], "ABCDEFG", "A")
    assert estimate == pytest.approx(2.5)  # two rosters of one round, no collusion
    assert epsilon_of(old, estimate) > 1.05 * old.epsilon()
