import numpy as np
import pytest

from fedpeft.aggregation.server_optimisers import step
from fedpeft.config.models import ServerOptimiserConfig


def naive(config, means):
    """Textbook loops, one value at a time."""
    out = []
    for values in zip(*means, strict=True):
        x = m = v = 0.0
        for t, g in enumerate(values, 1):
            if config.name == "mean":
                x += config.lr * g
            elif config.name == "momentum":
                m = config.momentum * m + g
                x += config.lr * m
            else:
                m = config.momentum * m + (1 - config.momentum) * g
                v = config.beta2 * v + (1 - config.beta2) * g**2
                scale = (v / (1 - config.beta2**t)) ** 0.5 + config.epsilon
                x += config.lr * (m / (1 - config.momentum**t)) / scale
        out.append(x)
    return np.array(out)


@pytest.mark.parametrize("name", ["mean", "momentum", "adam"])
def test_steps_equal_the_textbook(name):
    config = ServerOptimiserConfig(name=name, lr=0.3, momentum=0.8, beta2=0.95)
    means = np.random.default_rng(0).normal(size=(6, 9))
    x, moments = np.zeros(9), {}
    for mean in means:
        change, moments = step(config, mean, moments)
        x = x + change
    np.testing.assert_allclose(x, naive(config, means), rtol=1e-12)
    assert all(value.dtype == np.float64 for value in moments.values())


def test_a_step_leaves_its_arguments_alone():
    mean, moments = np.ones(3), {"first": np.full(3, 2.0)}
    step(ServerOptimiserConfig(name="momentum"), mean, moments)
    assert (mean == 1).all()
    assert (moments["first"] == 2).all()
