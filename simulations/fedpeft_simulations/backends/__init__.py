"""Three ways to run the same ServerApp and ClientApp; the same seed gives the same bits on all."""

from fedpeft_simulations.backends.run import BACKENDS, run_federation

__all__ = ["BACKENDS", "run_federation"]
