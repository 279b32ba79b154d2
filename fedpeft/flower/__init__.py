"""The one package that touches private names of Flower (``flwr >=1.41,<1.42``).

Contract tests in ``tests/fedpeft/test_flower*.py`` call every function here against the installed
version. Three ways to run the same ``ServerApp`` and ``ClientApp`` meet here: `run_local` (in process),
`run_ray` (Flower's simulation engine) and a SuperLink + `run_server_app` + `serve_node`. The SuperLink is
`superlink` for simulations and `serve_link` for a federation of organisations.
"""

import os

# Read by flwr and ray when they are imported: nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from fedpeft.flower.bundle import thin_app
from fedpeft.flower.control import end_run, node_numbers, register_node, unregister_node
from fedpeft.flower.engine import run_ray
from fedpeft.flower.faults import Fault, RunEnded
from fedpeft.flower.fleet import Connection
from fedpeft.flower.local import LocalGrid, run_local
from fedpeft.flower.messages import (
    APP_FAILED,
    EXPIRED,
    LARGEST_MESSAGE,
    NODE_LOST,
    REFUSED,
    UNREADABLE,
    deserialise,
    error_reply,
    guarded,
    hush,
    identify,
    serialise,
)
from fedpeft.flower.node_loop import Gate, serve_node
from fedpeft.flower.serverapp import public_keys, run_server_app
from fedpeft.flower.superlink.connection_limits import Admission, Limits
from fedpeft.flower.superlink.ports import free_port, public_port
from fedpeft.flower.superlink.request_check import OpenCall, Refusal
from fedpeft.flower.superlink.superlink import LinkSettings, SuperLink, serve_link, superlink

__all__ = [
    "APP_FAILED",
    "EXPIRED",
    "LARGEST_MESSAGE",
    "NODE_LOST",
    "REFUSED",
    "UNREADABLE",
    "Admission",
    "Connection",
    "Fault",
    "Gate",
    "Limits",
    "LinkSettings",
    "LocalGrid",
    "OpenCall",
    "Refusal",
    "RunEnded",
    "SuperLink",
    "deserialise",
    "end_run",
    "error_reply",
    "free_port",
    "guarded",
    "hush",
    "identify",
    "node_numbers",
    "public_keys",
    "public_port",
    "register_node",
    "run_local",
    "run_ray",
    "run_server_app",
    "serialise",
    "serve_link",
    "serve_node",
    "superlink",
    "thin_app",
    "unregister_node",
]
