"""A package outside the tree adds one plug-in of each kind; a small federation and its audit run with all."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETTINGS = {
    "adapter.method": "loha",
    "adapter.rank": 2,
    "audit.attacks": ["prior", "span"],
    "audit.nodes": 1,
    "base.threads": 1,
    "data.max_length": 32,
    "data.partition": "iid",
    "exchange.down.codec": "half",
    "exchange.up.codec": "half",
    "federation.batch_size": 2,
    "federation.local_steps": 1,
    "federation.nodes": 3,
    "federation.robust": "midrange",
    "federation.rounds": 2,
    "run.baselines": [],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process in which the package is installed: its code, and what pip writes of it."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / "acme_fedpeft-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    groups = project["entry-points"].items()
    lines = (f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups)
    (info / "entry_points.txt").write_text("\n".join(lines))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(HERE / "src")]),
        "OMP_NUM_THREADS": "1",
    }


def _fedpeft(env, *arguments):
    command = [sys.executable, "-m", "fedpeft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    lines = [f"Note {number} says|{'red' if number % 2 else 'green'}" for number in range(48)]
    (folder / "notes.psv").write_text("\n".join(["prompt|completion", *lines]) + "\n")
    options = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    options.append(f"data.source={folder / 'notes.psv'}")
    scenario = folder / "scenario.toml"
    scenario.write_text("")
    sets = [part for option in options for part in ("--set", option)]
    done = _fedpeft(installed, "simulate", scenario, "--quiet", "--out", folder / "run", *sets)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_federation_trains_with_another_packages_method_codec_rule_and_reader(run):
    summary = json.loads((run / "run.json").read_text())
    assert summary["adapter"]["method"] == "loha" and summary["rounds"] == 2
    envelopes = sorted(run.glob("updates/r*/*.fpd"))
    assert len(envelopes) == 6 and {path.read_bytes()[3] for path in envelopes} == {64}
    size = summary["adapter"]["trainable"]
    assert {path.stat().st_size for path in envelopes} == {4 + 2 * size + 64}
    assert '"compared": 3' in (run / "metrics.jsonl").read_text()
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LOHA"


def test_the_audit_runs_another_packages_attack_and_says_what_it_does_not_cover(run):
    report = json.loads((run / "audit" / "report.json").read_text())
    own = [finding for finding in report["findings"] if finding["attack"] == "prior"]
    assert own and all(finding["measures"] and finding["verdict"] != "leaks" for finding in own)
    assert {one["verdict"] for one in report["findings"] if one["attack"] == "span"} == {"not covered"}
    assert report["verdict"] == "not covered" and "Names the tokens that the base writes" in json.dumps(
        report
    )


def test_the_same_settings_without_the_package_are_refused_by_name():
    for key, word in (("exchange.up.codec", "half"), ("adapter.method", "loha"), ("data.format", "pipes")):
        done = _fedpeft(dict(os.environ), "config", "show", "--set", f"{key}={word}")
        assert done.returncode == 2
        assert f"'{key}' cannot be '{word}'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_installed_plug_in_is_not_imported_before_it_is_asked_for(installed):
    script = (
        "import sys; from fedpeft.cli import build_app; build_app()\n"
        "from fedpeft.config import build_config\n"
        "build_config({'data': {'format': 'jsonl'}}); print([m for m in sys.modules if 'acme' in m])"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, capture_output=True, text=True, env=installed, check=True)
    assert shown.stdout.strip() == "[]"
