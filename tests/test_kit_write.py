"""``fedpeft kit write``: what an operator needs who has only the wheel."""

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.cli import kits
from fedpeft.errors import ConfigError


def _write(folder):
    app = typer.Typer()
    kits.register(app)
    return CliRunner().invoke(app, ["kit", "write", str(folder)], catch_exceptions=False)


def test_both_kits_and_the_tested_versions_are_written(tmp_path):
    assert _write(tmp_path / "kit").exit_code == 0
    written = {
        str(path.relative_to(tmp_path / "kit")) for path in (tmp_path / "kit").rglob("*") if path.is_file()
    }
    for kit in ("node", "coordinator"):
        assert {f"{kit}/Dockerfile", f"{kit}/compose.yaml", f"{kit}/RUNBOOK.md"} <= written
    assert {"node/fedpeft-node.service", "coordinator/loopback.sh", "constraints.txt"} <= written


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(ConfigError, match="exists"):
        _write(tmp_path)


def test_a_wheel_has_them_within_its_packages(tmp_path, monkeypatch):
    """As hatch lays them out: the kit in the package, not beside it."""
    package = tmp_path / "somewhere" / "made_up"
    (package / "kit").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    assert kits._beside("made_up", "kit") == package / "kit"
    with pytest.raises(ConfigError, match=r"no RUNBOOK\.md of made_up"):
        kits._beside("made_up", "RUNBOOK.md")
