"""One organisation's home with a tiny base, and the orders of a coordinator without one."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

TRAINING = {"nodes": 2, "rounds": 3, "local_steps": 2, "batch_size": 4}


@dataclass
class Coordinator:
    """Enough of a coordinator to give one node its orders."""

    home: object

    @property
    def signer(self):
        from fedpeft.trust import Signer

        return Signer.from_seed(b"coordinator")

    def hello(self):
        from fedpeft.protocol import PROTOCOL, Hello, run_id

        return Hello(PROTOCOL, run_id(self.home.config), self.signer.public)

    def first_task(self, **changes):
        import time

        from fedpeft.protocol import TrainTask
        from fedpeft_clients.tasks import greet

        state = greet(self.home, self.hello()).state
        lr = self.home.config.federation.lr
        task = TrainTask(1, 2, lr, "none", 0, [], state, [], time.time() + 600)
        return replace(task, **changes)


@pytest.fixture
def organisation(tmp_path, tiny_model_folder):
    """A function from settings to a home and a coordinator that speaks to it."""
    from fedpeft.adapters import detach
    from fedpeft.config import build_config
    from fedpeft.data import Record
    from fedpeft_clients.home import Simulated, create_home

    rng = np.random.default_rng(0)
    records = [Record(f"note {rng.integers(1000)} is", str(rng.choice(["green", "red"]))) for _ in range(12)]

    def make(name="clinic", tapped=False, records=records, **sections):
        base = {"model": str(tiny_model_folder("llama")), "device": "cpu", "threads": 1}
        settings = {"base": base, "adapter": {"rank": 2}, "data": {"max_length": 32}, **sections}
        settings["federation"] = {**TRAINING, **sections.get("federation", {})}
        home = create_home(tmp_path / name, name, records, build_config(settings), Simulated(tapped))
        return home, Coordinator(home)

    yield make
    detach()
