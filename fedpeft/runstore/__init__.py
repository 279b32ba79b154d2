"""The run directory: every write is atomic, so that a run can be killed at any byte and resumed."""

from fedpeft.runstore.files import read_json, state_root, write_atomic, write_json, write_json_lines
from fedpeft.runstore.formats import Format
from fedpeft.runstore.store import RunStore, check_free, create_run

__all__ = [
    "Format",
    "RunStore",
    "check_free",
    "create_run",
    "read_json",
    "state_root",
    "write_atomic",
    "write_json",
    "write_json_lines",
]
