"""The node looks at its own envelope before it leaves, and may keep it."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import nullcontext

import numpy as np
import pytest

from fedpeft.config import load_config
from fedpeft.errors import AuditError, ConfigError, FederationError
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.node_context import NodeContext

UNDEFENDED = {
    "adapter": {"rank": 8, "aggregation": "naive", "skip_layers": []},
    "exchange": {way: {"codec": "dense-fp32"} for way in ("up", "down")},
}


def desk_and_examples(home):
    from fedpeft_clients.rounds.local_round import load_examples

    desk = NodeContext(home)
    return desk, list(load_examples(desk))


def warm_gradient(desk, examples):
    """The gradient of some records under an adapter that is no longer at its start."""
    import torch

    from fedpeft.data import collate
    from fedpeft.training import per_example_loss

    rng, attached = np.random.default_rng(0), desk.attached
    tensors = {
        name: rng.normal(scale=0.1, size=tuple(tensor.shape)) if ".lora_B" in name else tensor
        for name, tensor in attached.parameters.items()
    }
    attached.load(attached.layout.flatten(tensors))
    loss = per_example_loss(attached.model, collate(examples, desk.base.pad_id), "causal-lm").mean()
    gradients = torch.autograd.grad(loss, list(attached.parameters.values()))
    return attached.layout.flatten(dict(zip(attached.parameters, gradients, strict=True)))


def test_no_node_looks_unless_it_is_told_to(organisation):
    home, coordinator = organisation()
    train(NodeContext(home), coordinator.first_task(), b"")
    assert not list(home.outbox.glob("*.audit.json"))


def test_a_look_says_what_was_read(organisation):
    home, coordinator = organisation(audit={"outbox": "report"})
    train(NodeContext(home), coordinator.first_task(), b"")
    facts = json.loads((home.path / "outbox" / "r01.audit.json").read_text())
    assert facts["round"] == 1
    assert [finding["attack"] for finding in facts["findings"]] == ["span", "sparse-recovery"]
    assert all(finding["verdict"] == "not applicable" or finding["steps"] for finding in facts["findings"])


def test_an_undefended_update_is_found_to_leak_and_kept(organisation):
    from fedpeft_clients.rounds.leak_check import look

    home, _ = organisation(audit={"outbox": "refuse"}, **UNDEFENDED)
    desk, examples = desk_and_examples(home)
    values, held = warm_gradient(desk, examples[:1]), desk.attached.get()
    with pytest.raises(FederationError, match=r"keeps it; see outbox/r03\.audit\.json"):
        look(desk, 3, 0.1, values, (examples[:1], examples))
    np.testing.assert_array_equal(desk.attached.get(), held)
    facts = json.loads((home.path / "outbox" / "r03.audit.json").read_text())
    assert any(finding["verdict"] == "leaks" for finding in facts["findings"])


def test_noise_of_the_same_shape_is_sent(organisation):
    from fedpeft_clients.rounds.leak_check import look

    home, _ = organisation(audit={"outbox": "refuse"}, **UNDEFENDED)
    desk, examples = desk_and_examples(home)
    noise = np.random.default_rng(1).normal(size=desk.attached.layout.size).astype(np.float32)
    look(desk, 1, 0.1, noise, (examples[:1], examples))
    assert (home.path / "outbox" / "r01.audit.json").exists()


def written(home, round):
    return json.loads((home.path / "outbox" / f"r{round:02d}.audit.json").read_text())["findings"]


@pytest.mark.parametrize("wanted", ["report", "refuse"])
def test_an_update_whose_audit_did_not_finish_is_not_called_clean(organisation, wanted):
    """Where the safety stop ends an attack: kept under ``refuse``, told as not finished under ``report``."""
    from fedpeft_clients.outbox.gate import _verdict
    from fedpeft_clients.rounds.leak_check import look

    home, _ = organisation(audit={"outbox": wanted, "outbox_seconds": 1e-9}, **UNDEFENDED)
    desk, examples = desk_and_examples(home)
    noise = np.random.default_rng(1).normal(size=desk.attached.layout.size).astype(np.float32)
    refused = pytest.raises(FederationError, match="did not finish and keeps it")
    with refused if wanted == "refuse" else nullcontext():
        look(desk, 1, 0.1, noise, (examples[:1], examples))
    assert "not finished" in {finding["verdict"] for finding in written(home, 1)}
    assert _verdict(home, 1) == "not finished"


def test_an_adapter_that_the_audit_does_not_cover_is_not_called_clean(organisation):
    from fedpeft_clients.outbox.gate import _verdict
    from fedpeft_clients.rounds.leak_check import look

    home, _ = organisation(audit={"outbox": "refuse"}, adapter={"method": "ia3"})
    desk, examples = desk_and_examples(home)
    with pytest.raises(FederationError, match="does not cover the adapter of its update and keeps it"):
        look(desk, 1, 0.1, desk.attached.get(), (examples[:1], examples))
    assert {finding["verdict"] for finding in written(home, 1)} == {"not covered"}
    assert _verdict(home, 1) == "not covered"


def test_a_slow_machine_looks_as_hard(organisation, monkeypatch):
    from fedpeft_clients.rounds.leak_check import look

    home, _ = organisation(audit={"outbox": "report"}, **UNDEFENDED)
    desk, examples = desk_and_examples(home)
    values = warm_gradient(desk, examples[:1])
    look(desk, 1, 0.1, values, (examples[:1], examples))
    clock = time.process_time
    monkeypatch.setattr(time, "process_time", lambda: 100 * clock())
    look(desk, 2, 0.1, values, (examples[:1], examples))
    fast, slow = ([one | {"seconds": None} for one in written(home, round)] for round in (1, 2))
    assert slow == fast


def test_a_refusal_would_tell_what_a_privacy_plan_hides():
    private = ("privacy.unit=record", "privacy.epsilon=8", "privacy.public_records=1000")
    with pytest.raises(ConfigError, match=r"set audit\.outbox = 'report'"):
        load_config(overrides=(*private, "audit.outbox=refuse"))
    assert load_config(overrides=(*private, "audit.outbox=report")).audit.outbox == "report"


def reported(home, **delivery):
    from fedpeft_attacks.report.assemble import Delivery
    from fedpeft_attacks.report.node_home import audit_home

    return audit_home(home.path, delivery=Delivery(**delivery))


def test_a_deployed_run_has_a_report_from_the_nodes_own_audits(organisation):
    home, coordinator = organisation(audit={"outbox": "report"})
    with pytest.raises(AuditError, match="holds no audit of an envelope"):
        reported(home)
    train(NodeContext(home), coordinator.first_task(), b"")
    report = reported(home, own_copy=True)
    written_there = {finding["attack"]: finding for finding in written(home, 1)}
    assert [finding.attack for finding in report.findings] == list(written_there)
    for finding in report.findings:
        facts = written_there[finding.attack]
        assert finding.verdict == facts["verdict"] and finding.reason == f"round 1: {facts['reason']}"
        if facts["recall"] is not None:
            assert finding.value == pytest.approx(facts["recall"])
            assert finding.baselines.best == pytest.approx(facts["baseline"], abs=0.02)
    assert (report.nodes, report.rounds) == (("clinic",), (1,))
    answers = {risk.name: risk for risk in report.risks}
    assert answers["membership"].verdict == answers["memory"].verdict == "not tested"
    assert answers["text"].parts[1].verdict == "not tested"  # nobody has the mean here
    assert report.envelopes[0].sha256 == hashlib.sha256((home.outbox / "r01.fpd").read_bytes()).hexdigest()
    assert {file.name for file in (home.path / "audit").iterdir()} >= {"report.html", "model-card.md"}


def test_the_copy_for_the_coordinator_holds_nothing_that_depends_on_a_record(organisation):
    home, coordinator = organisation(audit={"outbox": "report"})
    train(NodeContext(home), coordinator.first_task(), b"")

    def counts(report):
        asked = [entry for part in report.assessments[0].chapters for entry in part.entries]
        return next(entry.answer for entry in asked if entry.asked == "Volumes")

    assert counts(reported(home)) is None and "clinic 12" in counts(reported(home, own_copy=True))
    assert reported(home).findings
    facts = json.loads((home.path / "node.json").read_text())
    facts["config"]["privacy"] |= {"unit": "record", "noise_multiplier": 1.0, "public_records": 1000}
    (home.path / "node.json").write_text(json.dumps(facts))
    for_others, own = reported(home), reported(home, own_copy=True)
    assert not for_others.findings and "left out of this copy" in for_others.not_tested[0]
    assert {risk.verdict for risk in for_others.risks} == {"not tested"}
    assert own.findings and own.claim.unit == "record"
