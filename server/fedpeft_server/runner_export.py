"""The result of a finished run: an adapter folder that plain peft loads."""

from __future__ import annotations

import json
from pathlib import Path

from fedpeft.runstore import RunStore


def export_adapter(run: Path) -> Path:
    """Write ``RUN/adapter`` from ``RUN/state/final.npz``; the same state gives the same bytes.

    Raises:
        FedPeftError: the run has not finished, or its base cannot be loaded.
    """
    from fedpeft.adapters import attach
    from fedpeft.adapters.export import export
    from fedpeft.bases import load_base
    from fedpeft_server.checkpoints import load_arrays

    store = RunStore.open(run)
    config = store.config
    labels = json.loads(store.labels.read_text(encoding="utf-8"))
    base = load_base(config.base, len(labels) if config.base.task == "sequence-classification" else None)
    attached = attach(base, config.adapter, config.run.seed)
    arrays, _ = load_arrays(run / "state" / "final.npz")
    if attached.law is None:
        attached.begin(arrays["values"])
        return export(attached, store.adapter)
    factors = attached.law.from_tensors(arrays)
    attached.begin(factors)
    return export(attached, store.adapter, factors)
