"""The one package that touches private names of Flower (``flwr >=1.41,<1.42``).

Contract tests in ``tests/fedpeft/test_flower.py`` call every function here against the installed
version. Three ways to run the same ``ServerApp`` and ``ClientApp`` meet here: `run_local` (in process),
`run_ray` (Flower's simulation engine) and `superlink` + `run_server_app` + `serve_node` (deployment).
"""

import os

# Read by flwr and ray when they are imported: nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from fedpeft.flower.engine import run_ray
from fedpeft.flower.link import SuperLink, free_port, run_server_app, superlink, thin_app
from fedpeft.flower.local import LocalGrid, run_local
from fedpeft.flower.messages import (
    APP_FAILED,
    EXPIRED,
    REFUSED,
    deserialise,
    error_reply,
    guarded,
    hush,
    identify,
    serialise,
)
from fedpeft.flower.node import serve_node

__all__ = [
    "APP_FAILED",
    "EXPIRED",
    "REFUSED",
    "LocalGrid",
    "SuperLink",
    "deserialise",
    "error_reply",
    "free_port",
    "guarded",
    "hush",
    "identify",
    "run_local",
    "run_ray",
    "run_server_app",
    "serialise",
    "serve_node",
    "superlink",
    "thin_app",
]
