"""The platform's own privacy: its defaults show no text to its own audit, and the undefended format does.

That they leak membership and class shares is known (decisions 0068 and 0070); these federations are too small
to measure it.

If the first fails, a change made the defaults leak. If the second fails, a change made the attacks blind, and
the first says nothing.
"""

from __future__ import annotations

import json

import pytest

from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft_simulations.federation_run import run

SMALL = (
    "run.baselines=[]",
    "data.samples=48",
    "data.test_samples=16",
    "federation.nodes=2",
    "federation.rounds=2",
)
UNDEFENDED = (
    "adapter.aggregation=naive",
    "adapter.skip_layers=[]",
    "exchange.up.codec=dense-fp32",
    "exchange.down.codec=dense-fp32",
    "federation.optimiser=sgd",
    "federation.local_steps=1",
    "federation.batch_size=2",
)


pytestmark = pytest.mark.portable


def audited(tmp_path, *settings):
    """The report of a small embedded federation."""
    store = run(
        load_config(embedded_scenario(), (*SMALL, *settings)), tmp_path / "run", "new", lambda event: None
    )
    return json.loads((store.path / "audit" / "report.json").read_text())


def assert_work_is_the_powers(report):
    """What was audited and what its power was read from had the same budget, and nothing was stopped."""
    for finding in report["findings"]:
        work = finding["work"]
        assert work is None or work["stopped"] == 0
        for share, done in finding["power"]["work"].items() if finding["power"] else ():
            assert done["stopped"] == 0
            if "batch" in share and work:
                assert done["allowed"] == work["allowed"]


def test_the_defaults_show_no_text(tmp_path):
    report = audited(tmp_path)
    known = ("update-membership", "labels")
    updates = [finding for finding in report["findings"] if finding["attack"] in known]
    assert {finding["attack"] for finding in updates} == set(known)
    members = [finding for finding in updates if finding["attack"] == "update-membership"]
    assert all(finding["measures"] for finding in members)  # for `labels` these runs hold too few records
    others = [finding for finding in report["findings"] if finding["attack"] not in known]
    leaving = {finding["verdict"] for finding in others if finding["role"] != "insider"}
    assert leaving <= {"not detected", "not tested", "not applicable"}  # the mean has no other data beside it
    power = {finding["attack"]: finding["power"] for finding in report["findings"] if finding["power"]}
    assert power["sparse-recovery"]["shares"]["the tokens of one record"] >= 0.9
    assert power["sequences"]["shares"]["one record alone"] >= 0.5
    assert_work_is_the_powers(report)


def test_the_undefended_format_leaks(tmp_path):
    report = audited(tmp_path, *UNDEFENDED)
    assert report["verdict"] == "leaks"
    leaking = {finding["stage"] for finding in report["findings"] if finding["verdict"] == "leaks"}
    assert {"gradient", "envelope"} <= leaking
