"""When a round closes: a hostile minority neither holds it up nor shuts honest nodes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft_server.rounds.ask_nodes import SHORTEST_GRACE, Question

DEADLINE = 3600.0


def closes(times, grace=4.0):
    """When a round ends whose nodes answer at these times (infinite: never), as the loop reckons it."""
    question, end = Question("train", "1", DEADLINE, grace=grace), DEADLINE
    for count, took in enumerate(sorted(times), 1):
        if took < end:
            end = min(end, question.close(len(times), count, took))
    return end


def spare(nodes):
    return max(1, (nodes - 1) // 3)


def honest_times(nodes):
    """Nodes, and when all but the spare ones answer."""
    count = nodes - spare(nodes)
    times = st.lists(st.floats(1.0, 600.0), min_size=count, max_size=count)
    return st.tuples(st.just(nodes), times)


FEDERATIONS = st.integers(3, 12).flatmap(honest_times)


@given(FEDERATIONS)
def test_silent_nodes_hold_the_round_up_for_a_few_times_as_long_as_the_others_take(drawn):
    nodes, honest = drawn
    end = closes([*honest, *[float("inf")] * spare(nodes)])
    assert end <= max(honest) + max(SHORTEST_GRACE, 4 * max(honest))


@given(FEDERATIONS)
def test_nodes_that_answer_at_once_shut_nobody_out_who_is_as_fast_as_the_others(drawn):
    nodes, honest = drawn
    end = closes([*honest, *[0.0] * spare(nodes)])
    assert all(took <= end for took in honest if took <= 5 * min(honest))


@pytest.mark.parametrize(("nodes", "grace"), [(1, 4.0), (2, 4.0), (10, 0.0)])
def test_of_two_nodes_or_without_grace_all_have_until_the_deadline(nodes, grace):
    assert closes([0.5] * (nodes - 1) + [float("inf")], grace) == DEADLINE
