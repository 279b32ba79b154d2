"""Plans run on the device give the host's bits, here in Triton's interpreter."""

import numpy as np
import pytest
import torch

from fedpeft.errors import ExchangeError
from fedpeft.exchange import DenseFp32, ExchangePlan, Layout, Sparsify, Ternarise, Ternary, Update
from fedpeft.exchange.envelope import encode_body
from fedpeft.exchange.gpu_plan import fits_device, run_on_device
from fedpeft.exchange.transforms import AddResidual, KeepResidual

pytest.importorskip("triton", reason="needs Triton for its interpreter")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here: see tests/gpu")

LAYOUT = Layout(("a", "b", "c", "d"), ((30, 11), (1,), (64, 64), (777,)))
PLAIN = ExchangePlan((Sparsify(0.1), Ternarise()), Ternary())
FEEDBACK = ExchangePlan((AddResidual(), Sparsify(0.1), Ternarise(), KeepResidual()), Ternary())


def changes(rounds):
    rng = np.random.default_rng(5)
    magnitude = np.repeat(np.float32([1, 3, 0.01, 1e-7]), LAYOUT.sizes)
    return [(rng.standard_t(3, LAYOUT.size) * magnitude).astype(np.float32) for _ in range(rounds)]


@pytest.mark.parametrize("plan", [PLAIN, FEEDBACK], ids=["plain", "feedback"])
def test_rounds_on_the_device_equal_rounds_on_the_host(plan):
    there, here = {}, {}
    for number, values in enumerate(changes(3), 1):
        wanted, _ = plan.run(Update(LAYOUT, values, number, 1), here)
        empty = Update(LAYOUT, np.zeros(LAYOUT.size, np.float32), number, 1)
        got = run_on_device(plan, torch.from_numpy(values), empty, there)
        assert np.array_equal(got.values.view(np.uint32), wanted.values.view(np.uint32))
        assert np.array_equal(got.support, wanted.support)
        assert encode_body(got, plan.codec) == encode_body(wanted, plan.codec)
        assert there.keys() == here.keys()
        for key in here:
            assert np.array_equal(there[key], here[key])


def test_values_that_are_not_finite_are_refused_and_leave_the_state():
    state = {}
    values = torch.zeros(LAYOUT.size)
    values[3] = float("nan")
    with pytest.raises(ExchangeError, match="not finite"):
        run_on_device(FEEDBACK, values, Update(LAYOUT, np.zeros(LAYOUT.size, np.float32), 1, 1), state)
    assert not state


def test_only_ternary_plans_without_a_privacy_claim_and_only_a_gpu_fit():
    private = ExchangePlan((Sparsify(0.1), Ternarise()), Ternary(), private=True)
    assert not any(fits_device(plan, "cpu") for plan in (PLAIN, FEEDBACK, private))
    assert not fits_device(ExchangePlan((), DenseFp32()), "cuda")
