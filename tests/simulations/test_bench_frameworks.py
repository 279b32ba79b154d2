"""The problem that other frameworks read from a folder is the platform's own."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fedpeft.data import Batch
from fedpeft.errors import RunError
from fedpeft.training.loss import per_example_loss
from fedpeft_bench.frameworks import problem
from fedpeft_bench.frameworks.comparison_rows import Track

SAYS = "import json; print(json.dumps({'first_loss': 3.0}))"


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> Track:
    return Track.laid(tmp_path_factory.mktemp("problem"))


def test_a_model_of_the_arrays_alone_has_the_loss_of_the_platform(track: Track) -> None:
    arrays = np.load(track.folder / problem.ARRAYS)
    model = LlamaForCausalLM(track.lab.attached.model.config)
    state = {name.removeprefix("base/"): arrays[name] for name in arrays if name.startswith("base/")}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    model.eval()
    first = [torch.from_numpy(arrays[name][: problem.FIRST]) for name in ("ids", "weights", "lengths")]
    with torch.no_grad():
        losses = per_example_loss(model, Batch(*first, torch.full((problem.FIRST,), -1)))
    assert not arrays["A"].any()  # so that the adapter is silent before training
    assert float(losses.mean()) == pytest.approx(track.first_loss, rel=1e-5)


def test_the_factors_are_those_of_the_adapter(track: Track) -> None:
    """What is trained has the adapter's shape, and the frozen factor acts as the adapter's."""
    arrays = np.load(track.folder / problem.ARRAYS)
    task = json.loads((track.folder / problem.TASK).read_text())
    attached = track.lab.attached
    values = np.random.default_rng(0).normal(size=attached.layout.size).astype(np.float32)
    attached.begin(values)
    module = attached.model.get_submodule(problem.PREFIX + task["module"])
    inputs = torch.randn(3, arrays["A"].shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = module(inputs).numpy()
    factors = values.reshape(arrays["A"].shape).T @ arrays["B"].T * arrays["scaling"]
    base = arrays[f"base/{task['module']}.weight"].T
    attached.begin(attached.initial())
    np.testing.assert_allclose(got, inputs.numpy() @ (base + factors), rtol=1e-4, atol=1e-4)


def test_the_task_is_the_plan_of_the_private_recipe(track: Track) -> None:
    task = json.loads((track.folder / problem.TASK).read_text())
    federation = track.lab.config.federation
    assert task["batch"] == federation.batch_size * federation.nodes
    assert task["rate"] == task["batch"] / task["records"]
    assert len(task["learning_rates"]) == federation.rounds * federation.local_steps


def test_a_framework_that_computes_another_loss_is_refused(track: Track) -> None:
    other = replace(track, first_loss=2.0)
    command = [sys.executable, "-c", SAYS]
    with pytest.raises(RunError, match=r"jax-privacy computes the loss 3\.0, fedpeft 2\.0"):
        other.run("jax-privacy", command, 8.0)


def test_a_script_that_fails_says_why(track: Track) -> None:
    with pytest.raises(RunError, match=r"pfl failed \(1\).*no such thing"):
        track.run("pfl", [sys.executable, "-c", "raise SystemExit('no such thing')"], 8.0)
