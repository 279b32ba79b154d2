"""What a run has learned: its state in memory, and the adapter folder that plain peft loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import RunError
from fedpeft.runstore import RunStore
from fedpeft_server.rounds.checkpoints import latest, load_arrays

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.aggregation import FactorState
    from fedpeft.exchange.layout import FloatVector


def load_final(store: RunStore, attached: Attached) -> FloatVector | FactorState:
    """The federation's final state: values that are averaged, or factors.

    Raises:
        RunError: the federation has not finished.
    """
    arrays, _ = load_arrays(store.path / "state" / "final.npz")
    return arrays["values"] if attached.aggregator is None else attached.aggregator.from_tensors(arrays)


def final_round(store: RunStore) -> int:
    """The last round of a finished federation, which may have stopped early.

    Raises:
        RunError: the federation has not finished.
    """
    return int(load_arrays(store.path / "state" / "final.npz")[1]["round"])


def load_checkpoint(store: RunStore, attached: Attached) -> FloatVector | FactorState:
    """The federation's state at its newest checkpoint.

    Raises:
        RunError: there is no checkpoint yet.
    """
    if (checkpoint := latest(store.path)) is None:
        raise RunError(f"{str(store.path)!r} has no checkpoint yet")
    if attached.aggregator is None:
        return checkpoint.arrays["exact"].astype("float32")
    return attached.aggregator.from_tensors(checkpoint.arrays)


def export_adapter(run: Path) -> Path:
    """Write ``RUN/adapter`` from ``RUN/state/final.npz``; the same state gives the same bytes.

    Raises:
        FedPeftError: the run has not finished, or its base cannot be loaded.
    """
    from fedpeft.adapters import attach
    from fedpeft.adapters.export import export
    from fedpeft.aggregation import FactorState
    from fedpeft.evaluation.held_out import load_run_base

    store = RunStore.open(run)
    config, labels = store.config, json.loads(store.labels.read_text(encoding="utf-8"))
    attached = attach(load_run_base(config, labels), config.adapter, config.run.seed)
    final = load_final(store, attached)
    attached.begin(final)
    factors = final if isinstance(final, FactorState) else None
    return export(attached, store.adapter, factors, beside=store.base)
