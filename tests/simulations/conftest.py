"""A small federation on disk: a run directory with its config, and one home per organisation."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

WORDS = [
    "the",
    "patient",
    "asked",
    "for",
    "a",
    "letter",
    "to",
    "the",
    "heart",
    "team",
    "and",
    "the",
    "nurse",
    "wrote",
    "it",
    "down",
    "today",
]
FEDERATION = {"nodes": 2, "rounds": 2, "local_steps": 2, "batch_size": 4}


def made_up_records(index, count=16):
    from fedpeft.data import Record

    rng = np.random.default_rng(index)
    return [Record(" ".join(rng.choice(WORDS, 6)), str(rng.choice(["green", "red"]))) for _ in range(count)]


@dataclass
class Prepared:
    run: Path
    homes: list

    def go(self, backend="inprocess"):
        from fedpeft_simulations.backends import run_federation

        events = []
        run_federation(self.run, self.homes, backend, events.append)
        return events

    @property
    def final(self):
        with np.load(self.run / "state" / "final.npz") as stored:
            return {name: stored[name] for name in stored.files}

    @property
    def envelopes(self):
        found = sorted([*self.run.glob("updates/r*/*.fpd"), *self.run.glob("broadcasts/*.fpd")])
        return {str(p.relative_to(self.run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture
def federation(tmp_path, tiny_model_folder):
    """A function from a name and settings (``section={...}``) to a prepared run of two organisations."""
    from fedpeft.adapters import detach
    from fedpeft.config import build_config
    from fedpeft.runstore import create_run
    from fedpeft_clients.rounds.run_home import Simulated, create_home

    def make(name="run", tapped=0, **sections):
        base = {"model": str(tiny_model_folder("llama")), "device": "cpu", "threads": 1}
        settings = {"base": base, "adapter": {"rank": 2}, "data": {"max_length": 32}, **sections}
        settings["federation"] = {**FEDERATION, **sections.get("federation", {})}
        config = build_config(settings)
        run = tmp_path / name
        create_run(run, config)
        homes, names = [], [f"org-{index:02d}" for index in range(config.federation.nodes)]
        for index, node in enumerate(names):
            known = Simulated(tapped=index < tapped, roster=names)
            create_home(run / "nodes" / node, node, made_up_records(index), config, known)
            homes.append(run / "nodes" / node)
        return Prepared(run, homes)

    yield make
    detach()
