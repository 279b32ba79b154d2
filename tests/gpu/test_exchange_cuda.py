"""On a real card the device's plan gives the host's bits, and a node's round goes through it."""

import numpy as np
import pytest

from fedpeft.config.models import DirectionConfig
from fedpeft.exchange import Layout, Update, plan_from_config

pytestmark = pytest.mark.gpu

LAYOUT = Layout(("a", "b", "c"), ((4096, 64), (1,), (1000, 777)))


@pytest.mark.parametrize("density", [0.001, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("feedback", [True, False])
def test_rounds_on_the_card_equal_rounds_on_the_host(density, feedback):
    import torch

    from fedpeft.exchange.envelope import encode_body
    from fedpeft.exchange.gpu_plan import fits_device, run_on_device

    plan = plan_from_config(DirectionConfig(density=density, error_feedback=feedback), private=False)
    assert fits_device(plan, "cuda")
    here, there = {}, {}
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        values = rng.standard_t(3, LAYOUT.size).astype(np.float32)
        wanted, _ = plan.run(Update(LAYOUT, values, number, 1), here)
        empty = Update(LAYOUT, np.zeros_like(values), number, 1)
        got = run_on_device(plan, torch.from_numpy(values).cuda(), empty, there)
        assert encode_body(got, plan.codec) == encode_body(wanted, plan.codec)
        assert here.keys() == there.keys()
        assert all(np.array_equal(here[key], there[key]) for key in here)


def test_a_node_on_the_card_sends_an_envelope_that_opens(tmp_path, tiny_model_folder):
    from fedpeft.config import build_config
    from fedpeft.data import Record
    from fedpeft.exchange.gpu_plan import fits_device
    from fedpeft.runstore import create_run
    from fedpeft_clients.rounds.run_home import create_home
    from fedpeft_simulations.backends import run_federation

    base = {"model": str(tiny_model_folder("llama")), "device": "cuda"}
    federation = {"nodes": 2, "rounds": 2, "local_steps": 2, "batch_size": 4}
    settings = {"base": base, "adapter": {"rank": 2}, "data": {"max_length": 32}, "federation": federation}
    config = build_config(settings)
    assert fits_device(plan_from_config(config.exchange.up, private=False), "cuda")
    create_run(tmp_path / "run", config)
    records = [Record("the patient asked for a letter", answer) for answer in ("yes", "no") * 4]
    homes = [tmp_path / "run" / "nodes" / name for name in ("a", "b")]
    for home in homes:
        create_home(home, home.name, records, config)
    events = []
    run_federation(tmp_path / "run", homes, "inprocess", events.append)
    assert [event["refused"] for event in events if event["event"] == "round"] == [{}, {}]
