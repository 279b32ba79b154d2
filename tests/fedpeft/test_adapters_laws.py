import numpy as np
import pytest

from fedpeft.aggregation import FactorAggregator, mean_step, naive_warning, product_error
from fedpeft.aggregation.lora_factors import compact
from fedpeft.errors import ExchangeError
from fedpeft.exchange import Decoded, Layout
from fedpeft.rng import stream

SHAPES = (("x.a", (7, 12)), ("x.b", (10, 5)))
RNG_SEED = 5


def _law(kind, **more):
    return FactorAggregator(kind, seed=3, shapes=SHAPES, rank=4, **more)


def _deltas(law, nodes, round):
    rng = stream(RNG_SEED, round, "", "deltas")
    return [(n, w, _sent(law.layout(n), rng.standard_normal(law.layout(n).size))) for n, w in nodes]


def _sent(layout, values):
    return Decoded(layout, np.asarray(values, np.float32))


def _naive_twin(law, state, round, contributions, lr):
    """The wanted weight change, formed densely: state + lr * mean of scaling (B A - B0 A0)."""
    total = sum(weight for _, weight, _ in contributions)
    dense = {module: state.dense(module) for module, _ in SHAPES}
    for node, weight, delta in contributions:
        start, change = law.start(state, round, node), law.layout(node).split(delta.dense())
        for module, (a0, b0) in start.items():
            a = a0.astype(float) + change[f"{module}.lora_A.weight"]
            b = b0.astype(float) + change[f"{module}.lora_B.weight"]
            dense[module] += lr * weight / total * law.scaling * (b @ a - b0.astype(float) @ a0.astype(float))
    return dense


@pytest.mark.parametrize("ranks", [(), (("a", 2), ("c", 6))])
def test_stacking_is_exact_over_rounds_and_is_compacted(ranks):
    law = _law("stack", ranks=ranks)
    state = law.initial()
    for round in (1, 2, 3):
        contributions = _deltas(law, [("a", 1.0), ("b", 2.0), ("c", 0.5)], round)
        wanted = _naive_twin(law, state, round, contributions, 1.5)
        state = law.step(state, round, contributions, lr=1.5)
        for module, shape in SHAPES:
            assert np.allclose(state.dense(module), wanted[module], atol=2e-5 * np.abs(wanted[module]).max())
            assert state.factors[module][0].shape[0] <= max(min(shape), 0)
    assert state.discarded == 0


@pytest.mark.parametrize("ranks", [(), (("a", 2), ("c", 6))])
def test_reprojection_is_the_best_of_its_rank(ranks):
    law = _law("reproject", ranks=ranks)
    state = law.initial()
    for round in (1, 2, 3):
        contributions = _deltas(law, [("a", 1.0), ("b", 2.0), ("c", 0.5)], round)
        wanted = _naive_twin(law, state, round, contributions, 1.0)
        state = law.step(state, round, contributions)
        cut = whole = 0.0
        for module, _ in SHAPES:
            u, s, vt = np.linalg.svd(wanted[module], full_matrices=False)
            best = (u[:, :4] * s[:4]) @ vt[:4]
            assert np.allclose(state.dense(module), best, atol=1e-4 * s[0])
            assert state.factors[module][0].shape[0] == 4
            cut, whole = cut + (s[4:] ** 2).sum(), whole + (s**2).sum()
        assert state.discarded == pytest.approx(np.sqrt(cut / whole), rel=1e-3)


@pytest.mark.parametrize("kind", ["stack", "reproject"])
def test_both_ends_start_alike_and_a_start_changes_nothing(kind):
    law = _law(kind)
    state = law.step(law.initial(), 1, _deltas(law, [("a", 1.0), ("b", 1.0)], 1))
    first, second = law.start_values(state, 2, "a"), law.start_values(state, 2, "a")
    assert np.array_equal(first, second) and first.dtype == np.float32
    assert kind == "reproject" or not np.array_equal(first, law.start_values(state, 2, "b"))
    still = law.step(state, 2, [(n, 1.0, _sent(law.layout(n), np.zeros(first.size))) for n in ("a", "b")])
    for module, _ in SHAPES:
        assert np.allclose(still.dense(module), state.dense(module), atol=1e-5)


def test_a_small_node_starts_from_the_leading_components():
    law = _law("reproject", ranks=(("small", 2),))
    state = law.step(law.initial(), 1, _deltas(law, [("big", 1.0)], 1))
    for module, (a, b) in law.start(state, 2, "small").items():
        u, s, vt = np.linalg.svd(state.dense(module))
        assert np.allclose(law.scaling * b @ a, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-4 * s[0])


def test_states_travel_as_tensors():
    law = _law("stack")
    state = law.step(law.initial(), 1, _deltas(law, [("a", 1.0)], 1))
    again = law.from_tensors(state.layout.split(state.values))
    assert all(np.array_equal(again.factors[m][i], state.factors[m][i]) for m, _ in SHAPES for i in (0, 1))
    assert (
        law.state_layout({m: state.factors[m][0].shape[0] for m, _ in SHAPES}).digest == state.layout.digest
    )
    assert law.from_tensors({}).rank == law.initial().rank == 0 and law.initial().values.shape == (0,)
    with pytest.raises(ExchangeError, match="is not a factor"):
        law.from_tensors({"y.lora_A.weight": np.zeros((1, 2), np.float32)})
    with pytest.raises(ExchangeError, match="do not fit"):
        law.from_tensors({"x.a.lora_A.weight": np.zeros((1, 12), np.float32)})


def test_compact_is_exact_deterministic_and_drops_rounding():
    rng = stream(0, 0, "", "compact")
    b, a = rng.standard_normal((9, 3)), rng.standard_normal((3, 8))
    doubled = (np.concatenate([a, a]), np.concatenate([b, b], axis=1))
    small_a, small_b, lost, total = compact(*doubled, 8)
    assert small_a.shape == (3, 8) and np.allclose(small_b @ small_a, 2 * b @ a)
    assert lost < 1e-20 and total == pytest.approx(np.linalg.norm(2 * b @ a) ** 2)
    mirrored = compact(-doubled[0], -doubled[1], 8)
    assert np.allclose(mirrored[0], small_a) and np.allclose(mirrored[1], small_b)
    assert compact(np.zeros((2, 4)), np.zeros((3, 2)), 2)[0].shape == (0, 4)


def test_mean_is_the_weighted_mean_and_streams():
    rng = stream(0, 0, "", "mean")
    vectors = [rng.standard_normal(50).astype(np.float32) for _ in range(3)]
    weights = [1.0, 3.0, 0.5]
    read = []

    def lazily():
        for name, weight, vector in zip("abc", weights, vectors, strict=True):
            read.append(name)
            yield name, weight, _sent(Layout(("x",), ((50,),)), vector)

    got = mean_step(50, lazily())
    assert read == ["a", "b", "c"] and got.dtype == np.float64
    expected = np.average(np.stack(vectors).astype(float), axis=0, weights=weights)
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("contributions", "pattern"),
    [
        ([], "nothing to aggregate"),
        ([("b", 1.0, 2), ("a", 1.0, 2)], "rising order of node; 'a' came after 'b'"),
        ([("a", 1.0, 2), ("a", 1.0, 2)], "rising order"),
        ([("a", 0.0, 2)], "must be positive"),
        ([("a", float("nan"), 2)], "must be positive"),
        ([("a", 1.0, 3)], "expected 2 values"),
    ],
)
def test_the_mean_refuses(contributions, pattern):
    sent = (
        (node, weight, _sent(Layout(("x",), ((size,),)), np.zeros(size)))
        for node, weight, size in contributions
    )
    with pytest.raises(ExchangeError, match=pattern):
        mean_step(2, sent)


def test_the_error_of_naive_averaging_is_measured():
    names = {f"m.lora_{x}.weight": np.zeros(shape) for x, shape in (("A", (4, 30)), ("B", (20, 4)))}
    layout = Layout.of(names)
    rng = stream(1, 0, "", "naive")
    start = rng.standard_normal(layout.size).astype(np.float32)
    deltas = [(n, w, _sent(layout, rng.standard_normal(layout.size))) for n, w in (("a", 1.0), ("b", 2.0))]
    ends = [layout.split(start + delta.dense()) for _, _, delta in deltas]
    a = [end["m.lora_A.weight"].astype(float) for end in ends]
    b = [end["m.lora_B.weight"].astype(float) for end in ends]
    true = (b[0] @ a[0] + 2 * b[1] @ a[1]) / 3
    naive = ((b[0] + 2 * b[1]) / 3) @ ((a[0] + 2 * a[1]) / 3)
    error = product_error(layout, start, deltas)
    assert error == pytest.approx(np.linalg.norm(naive - true) / np.linalg.norm(true), rel=1e-6)
    assert f"{error:.1%}" in naive_warning(error)
    assert product_error(layout, start, deltas[:1]) == pytest.approx(0, abs=1e-6)
