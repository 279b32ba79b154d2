import numpy as np
import torch

from fedpeft.rng import stream, torch_stream


def test_same_tuple_same_numbers_and_every_part_matters():
    reference = stream(1, 2, "a", "b").random(4)
    assert np.array_equal(reference, stream(1, 2, "a", "b").random(4))
    others = [
        (2, 2, "a", "b"),
        (1, 3, "a", "b"),
        (1, 2, "c", "b"),
        (1, 2, "a", "d"),
        (1, 2, "ab", ""),
        (12, 2, "a", "b"),
    ]
    for other in others:
        assert not np.array_equal(reference, stream(*other).random(4))


def test_numbers_are_pinned_across_machines():
    assert stream(0, 1, "hospital", "batches").integers(0, 2**32, 3).tolist() == [
        3913555615,
        3932090852,
        1028745287,
    ]


def test_torch_stream_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = torch.rand(3, generator=torch_stream(0, 1, "a", "x"))
    assert torch.equal(first, torch.rand(3, generator=torch_stream(0, 1, "a", "x")))
    assert torch.equal(before, torch.random.get_rng_state())


def test_streams_are_unrelated():
    a, b = stream(0, 1, "a", "x").standard_normal(20000), stream(0, 1, "b", "x").standard_normal(20000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
