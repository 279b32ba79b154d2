"""The audit of a run directory, its report and its command."""

import json

import pytest

from fedpeft.errors import AuditError, RunError
from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.report.html import render
from fedpeft_attacks.results.findings import Report
from fedpeft_attacks.results.measures import RARE

# typer asks click for names that click deprecates, when it is first imported
pytestmark = [
    pytest.mark.filterwarnings("ignore:'click.utils.get:DeprecationWarning"),
    pytest.mark.portable,
]

LORA = {"aggregation": "naive", "rank": 8}
TOKENS = ["span", "sparse-recovery"]


def _findings(report, attack):
    return {finding.stage: finding for finding in report.findings if finding.attack == attack}


def test_a_raw_gradient_leaks_and_the_report_says_so(make_run):
    lines = []
    run = make_run(LORA, batch=3)
    report = audit(run, progress=lines.append)
    sparse = _findings(report, "sparse-recovery")
    assert list(sparse) == ["gradient", "ternarise", "envelope", "aggregate"]
    assert sparse["gradient"].verdict == "leaks"
    assert sparse["gradient"].value >= 0.85
    assert sparse["gradient"].measure(RARE).value >= 0.85
    power = sparse["gradient"].power.shares
    assert sparse["gradient"].value == pytest.approx(power["the tokens of a batch"], abs=0.1)
    assert sparse["envelope"].value < sparse["gradient"].value
    assert power["the tokens of one record"] >= 0.9
    assert sparse["gradient"].baselines.control is not None
    assert sparse["aggregate"].baselines.control is None
    assert (sparse["gradient"].role, sparse["envelope"].role, sparse["aggregate"].role) == (
        "insider",
        "coordinator",
        "peer",
    )
    assert [envelope.file for envelope in report.envelopes] == [
        "updates/r01/bank.fpd",
        "updates/r01/hospital.fpd",
    ]
    assert any("sparse-recovery on gradient" in line for line in lines)


def test_the_report_round_trips_and_fits_its_schema(make_run):
    run = make_run({"aggregation": "frozen_a", "rank": 4}, batch=2)
    report = audit(run, ["span"])
    stored = (run / "audit" / "report.json").read_text()
    assert Report.model_validate_json(stored) == report
    schema = Report.model_json_schema()
    assert set(schema["required"]) <= set(json.loads(stored))
    wanted = {
        "attack",
        "stage",
        "threat_model",
        "adapter",
        "value",
        "interval",
        "baselines",
        "power",
        "verdict",
    }
    assert wanted <= set(schema["$defs"]["Finding"]["properties"])
    with pytest.raises(ValueError, match="unexpected"):
        Report.model_validate({**json.loads(stored), "unexpected": 1})


def test_two_audits_of_a_run_give_the_same_report(make_run, tmp_path):
    run = make_run(LORA, batch=2)
    audit(run, ["sparse-recovery"], tmp_path / "one")
    audit(run, ["sparse-recovery"], tmp_path / "two")
    for name in ("report.json", "report.html", "model-card.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_page_holds_no_training_token_and_no_script(make_run, sentences):
    run = make_run(LORA, batch=3)
    report = audit(run)
    for name in ("report.html", "report.json", "model-card.md"):
        text = (run / "audit" / name).read_text()
        rows = sentences(3, 5000) + sentences(3, 5001)
        assert not any(f"w{token}" in text for row in rows for token in row)
        assert "token_ids" not in text
    page = (run / "audit" / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "What this report does not show" in page
    assert "claims no differential privacy" in page
    assert report.envelopes[0].sha256 in page


def test_names_from_the_run_are_escaped(make_run):
    report = audit(make_run(LORA, batch=2), ["span"])
    page = render(report.model_copy(update={"run": "<b>&", "nodes": ("<i>",)}))
    assert "<b>&" not in page
    assert "<i>" not in page


def test_a_skipped_layer_is_said_and_read_approximately(make_run):
    report = audit(make_run({"rank": 4, "skip_layers": [0]}, batch=2), TOKENS)
    read = [finding for finding in report.findings if finding.measures]
    assert read and all("layer 0 carries no adapter" in finding.note for finding in read)
    assert all("approximate" in row.method for finding in report.findings for row in finding.views)
    power = read[-1].power.shares
    assert power["the tokens of one record"] > power["those of one record from the layers of this adapter"]
    assert "layer 0 carries no adapter" in render(report)


def test_silence_about_an_update_that_shows_more_than_attacks_read_is_not_covered(make_run):
    report = audit(make_run({"rank": 4, "trainable_tokens": [20, 21]}, batch=2), ["span"])
    quiet = [finding for finding in report.findings if finding.verdict != "leaks"]
    assert quiet and {finding.verdict for finding in quiet} == {"not covered"}
    assert all("which of these tokens a batch held, which no attack here reads" in f.reason for f in quiet)
    assert report.verdict in ("leaks", "not covered")
    assert any("adapter.trainable_tokens" in sentence for sentence in report.not_tested)


def test_an_adapter_without_token_rows_is_not_covered_and_still_has_a_report(make_run):
    report = audit(make_run({"method": "ia3"}, batch=2, warm=False))
    assert {finding.verdict for finding in report.findings} == {"not covered"}
    assert report.verdict == "not covered" and not report.is_finished
    assert "not covered: one organisation's envelope" in report.summary
    assert report.findings[0].reason in report.threats[0].reason
    assert "<svg" not in render(report)


def test_the_privacy_claim_is_printed(make_run):
    privacy = {
        "unit": "record",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.1,
        "max_noise_to_signal": 99,
    }
    report = audit(make_run(LORA, batch=2, privacy=privacy), ["span"])
    assert report.claim.epsilon > 0
    assert "epsilon" in report.claim.text
    assert report.claim.text in render(report)


def test_clear_errors(make_run, tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        audit(tmp_path)
    run = make_run(LORA, batch=2)
    with pytest.raises(AuditError, match="unknown attack 'spam'; the nearest attack is 'span'"):
        audit(run, ["spam"])
    (run / "nodes" / "bank" / "taps" / "r01" / "gradient.npz").write_bytes(b"torn")
    with pytest.raises(AuditError, match="cannot read the tap"):
        audit(run, ["span"])
    for meta in run.glob("nodes/*/taps/r01/meta.json"):
        meta.unlink()
    with pytest.raises(AuditError, match=r"audit\.enabled"):
        audit(run)


def test_the_command(make_run, command, tmp_path):
    run = make_run(LORA, batch=2)
    answer = command(run, "--attacks", "span", "--json", "--out", tmp_path / "report")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout) == json.loads((tmp_path / "report" / "report.json").read_text())
    plain = command(run, "--attacks", "span")
    assert "report.html" in plain.stdout
    assert json.loads(command("--schema").stdout) == Report.model_json_schema()
    assert isinstance(command().exception, AuditError)


def test_fail_on_leak_has_its_own_exit_code(make_run, command):
    run = make_run(LORA, batch=1)
    for node in ("bank", "hospital"):
        folder = run / "nodes" / node / "taps" / "r01"
        (folder / "envelope.npz").write_bytes((folder / "gradient.npz").read_bytes())
    tokens = ("--json", "--attacks", ",".join(TOKENS))
    assert command(run, *tokens).exit_code == 0
    assert command(run, *tokens, "--fail-on-leak").exit_code == 10
