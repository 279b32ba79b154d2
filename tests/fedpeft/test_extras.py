"""Without an extra everything else works, and what needs it says which one to install."""

import subprocess
import sys

import pytest

from fedpeft.config import load_config
from fedpeft.data import Record, partition
from fedpeft.errors import ConfigError
from fedpeft.extras import needs


@pytest.fixture
def without(monkeypatch):
    """A function that hides packages from imports."""

    def hide(*packages):
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return hide


def test_a_missing_package_is_one_line_that_names_the_extra(without):
    without("faker")
    with (
        pytest.raises(
            ConfigError, match=r"^invented people needs faker: pip install 'fedpeft\[simulation\]'$"
        ),
        needs("simulation", "invented people"),
    ):
        import faker  # noqa: F401


def test_partitions_of_one_data_set_need_an_extra(without):
    without("datasets")
    records = [Record(f"question {i}", " yes") for i in range(8)]
    with pytest.raises(ConfigError, match=r"data\.partition needs datasets: .*fedpeft\[simulation\]"):
        partition(records, load_config(overrides=["data.partition=iid"]).data, 2, 0)


def test_a_parquet_file_needs_an_extra(without, tmp_path):
    from fedpeft.data import read_records

    (tmp_path / "notes.parquet").write_bytes(b"PAR1")
    without("pyarrow")
    with pytest.raises(ConfigError, match=r"a Parquet file needs pyarrow: .*fedpeft\[datasets\]"):
        list(read_records(tmp_path / "notes.parquet", load_config().data))


def test_a_folder_saved_by_datasets_needs_an_extra(without, tmp_path):
    from fedpeft.data import read_records

    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text("{}")
    without("datasets")
    with pytest.raises(ConfigError, match=r"fedpeft\[datasets\]"):
        list(read_records(tmp_path, load_config(overrides=["data.format=datasets"]).data))


SCRIPT = """
import sys
for name in ("faker", "flwr_datasets", "datasets", "pandas", "matplotlib", "seaborn", "pyarrow"):
    sys.modules[name] = None
import fedpeft.cli, fedpeft_clients.app, fedpeft_server.app, fedpeft_attacks.audit_suite
import fedpeft_simulations.federation_run
fedpeft.cli.build_app()
"""


def test_node_coordinator_audit_and_simulation_load_without_any_extra():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
