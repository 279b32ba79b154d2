"""Nodes on Ray, through Flower's simulation engine: many cores, many GPUs, many machines."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft_server.app import make_app
from fedpeft_simulations.backends.base import Progress


def run_ray(run: Path, homes: Sequence[Path], progress: Progress) -> None:
    """Run a federation on Ray; every actor loads the base once.

    Threads per actor are those of this process, so that floating-point sums are split in the same way.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads()))
    stop = threading.Event()
    try:
        flower.run_ray(make_app(progress, run, stop), placed([str(home) for home in homes]), len(homes))
    finally:
        stop.set()


def placed(homes: Sequence[str]) -> ClientApp:
    """The ClientApp with the home of each of Flower's virtual nodes."""
    made = ClientApp()

    def forward(message: Message, context: Context) -> Message:
        from fedpeft_clients.app import app

        context.node_config["home"] = homes[int(context.node_config["partition-id"])]
        return flower.guarded(app, message, context)

    made.query()(forward)
    made.train()(forward)
    return made


def _threads() -> int:
    import torch

    return torch.get_num_threads()
