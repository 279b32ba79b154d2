"""The operator's commands."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedpeft.cli import build_app
from fedpeft.protocol.messages import TRAIN, run_id


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A function from arguments of ``fedpeft node`` to the result."""
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    app = build_app()
    return lambda *arguments: CliRunner().invoke(app, ["node", *map(str, arguments)])


def said(result, code=0):
    assert result.exit_code == code, result.output
    return result.stdout


def refused(result, message):
    assert result.exit_code != 0 and message in str(result.exception), result.output


@pytest.fixture
def records(tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"q": "how is it", "a": "green"}\n{"q": "and now", "a": "red"}\n')
    return file


def test_a_node_is_made_and_found_again(node):
    made = json.loads(said(node("init", "clinic", "--json")))
    assert len(made["signing_key"]) == 64
    facts = json.loads(said(node("status", "--json")))
    assert (facts["name"], facts["runs"], facts["coordinators"]) == ("clinic", [], [])
    refused(node("init", "clinic"), "never overwritten")
    said(node("init", "other"))
    refused(node("status"), "several nodes")


def test_what_is_no_name_and_no_template(node):
    refused(node("init", "a/b"), "letters, digits")
    refused(node("init", "clinic", "--policy", "lax"), "no policy template")


def test_without_a_node_commands_say_what_to_do(node, tmp_path):
    refused(node("status"), "fedpeft node init")
    refused(node("status", "--home", tmp_path), "holds no organisation")


def test_data_are_counted_and_shown_on_this_screen_only(node, records, tmp_path):
    said(node("init", "clinic"))
    columns = ("--prompt-column", "q", "--completion-column", "a", "--budget-id", "notes")
    shown = said(node("data", "add", "notes", records, *columns))
    assert "2 records" in shown and "'how is it' -> 'green'" in shown
    assert "how is it" not in said(node("data", "add", "notes", records, *columns, "--no-preview"))
    facts = json.loads(said(node("data", "list", "--json")))["datasets"]["notes"]
    assert facts["lineage"] == "notes" and facts["records"] == 2
    kept = [one.read_bytes() for one in (tmp_path / "home").rglob("*") if one.is_file()]
    assert not any(b"how is it" in content for content in kept)


def test_a_data_set_keeps_its_lineage_for_life(node, records):
    said(node("init", "clinic"))
    columns = ("--prompt-column", "q", "--completion-column", "a")
    said(node("data", "add", "notes", records, *columns, "--budget-id", "notes"))
    for name in ("notes", "again"):
        refused(node("data", "add", name, records, *columns, "--budget-id", "fresh"), "keeps for life")


def test_data_with_other_columns_are_refused_with_the_nearest(node, records):
    said(node("init", "clinic"))
    refused(node("data", "add", "notes", records, "--budget-id", "notes"), "no column 'prompt'")


def test_an_edited_policy_replaces_the_old_one_only_if_it_holds(node, monkeypatch, tmp_path):
    said(node("init", "clinic"))
    policy = tmp_path / "home/node/clinic/policy.toml"
    before = policy.read_text()
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/max_rank/mostrank/")
    refused(node("policy", "edit"), "adapter.mostrank")
    assert policy.read_text() == before
    monkeypatch.setenv("EDITOR", "sed -i 's/mostrank = 64/max_rank = 32/'")
    said(node("policy", "edit"))
    assert json.loads(said(node("policy", "show", "--json")))["adapter"]["max_rank"] == 32
    assert "holds" in said(node("policy", "check"))
    assert json.loads(said(node("policy", "check", "--json")))["unbounded"] == []
    policy.write_text('[adapter]\naggregations = ["frozen_a", "stack"]')
    assert "aggregations stack: a coordinator may send any state" in said(node("policy", "check"))
    policy.write_text("surprise = 1")
    refused(node("policy", "check"), "surprise")


def test_the_shown_policy_is_a_policy(node):
    from fedpeft_clients.governance.policy import Policy, parse_policy

    said(node("init", "clinic"))
    assert parse_policy(said(node("policy", "show"))) == Policy()


def test_an_operator_sees_terms_in_plain_words_approves_and_reads_what_left(node, joined, tmp_path):
    home = ("--home", joined.organisation.path)
    joined.policy(approval=True)
    config = joined.config()
    joined.offer(config)
    shown = said(node("runs", *home))
    for word in ("waiting", "lora, frozen_a, rank 2", "3 rounds of 2 steps", "masked-sign", "per record"):
        assert word in shown
    refused(node("approve", "ffff", *home), "names 0 offered runs")
    refused(node("approve", run_id(config).hex()[:8], "--data", "absent", *home), "no data set")
    refused(node("approve", run_id(config).hex()[:8], "--data", "notes", *home), "are not those of --terms")
    line = shown[shown.index("fedpeft node approve ") :].splitlines()[0]
    said(node(*line.split()[2:], "--data", "notes", *home))
    assert joined.offer(config) == ("agreed", "")
    joined.say(TRAIN, joined.first_task(config))
    status = json.loads(said(node("status", *home, "--json")))
    assert status["runs"][0]["round"] == 1 and status["lineages"][0]["epsilon"] > 0
    assert status["lineages"][0]["budget"] == 40.0
    assert "train" in said(node("status", *home)) and "train" in said(node("outbox", "list", *home))
    assert "intact" in said(node("ledger", "verify", joined.organisation.path))
    assert "of 40" in said(node("ledger", "show", joined.organisation.path))


def test_the_log_is_exported_and_verified_elsewhere(node, joined, tmp_path):
    home, out = ("--home", joined.organisation.path), tmp_path / "export.jsonl"
    joined.offer(joined.config())
    joined.offer(joined.config())
    head = json.loads(said(node("outbox", "verify", *home, "--json")))["head"]
    key = json.loads(said(node("outbox", "export", "-o", out, *home, "--json")))["key"]
    facts = json.loads(said(node("outbox", "verify", out, "--key", key, "--known", head, "--json")))
    assert facts == {"entries": 2, "head": head, "key": key, "key_given": True}
    assert "give --key" in said(node("outbox", "verify", out))
    refused(node("outbox", "verify", out, "--key", "00" * 32), "another version or key")
    refused(node("outbox", "verify", out, "--known", f"2:{'0' * 64}"), "put back or replaced")
    refused(node("outbox", "export", "-o", out, *home), "exists")
    log = joined.organisation.outbox.path
    log.write_bytes(log.read_bytes().replace(b'"agreed"', b'"agreeD"', 1))
    refused(node("outbox", "verify", *home), "changed at entry 1")


def test_doctor_finds_what_is_wrong(node, joined):
    home = ("--home", joined.organisation.path)
    joined.policy(approval=True)
    grant = joined.grant.folder / "grant.json"
    from fedpeft.flower import thin_app

    grant.write_text(json.dumps({**json.loads(grant.read_text()), "app": thin_app()[1]}))
    joined.grant.ca.write_text("")
    checks = json.loads(node("doctor", *home, "--json").stdout)["checks"]
    assert {one["check"] for one in checks} >= {
        "keys",
        "policy",
        "base",
        "data",
        "disk",
        "device",
        "versions",
    }
    assert "12 readable records" in str(checks) and "agreed content" in str(checks)
    joined.organisation.transport.chmod(0o644)
    joined.policy(bases={"0" * 64: next(iter(_bases(joined).values()))})
    with open(joined.organisation.datasets()["notes"].file, "ab") as file:
        file.write(b"{}\n")
    result = node("doctor", *home, "--json")
    assert result.exit_code == 1
    wrong = {one["check"] for one in json.loads(result.stdout)["checks"] if one["state"] == "wrong"}
    assert {"keys", "base", "data"} <= wrong


def _bases(joined):
    from fedpeft_clients.governance.policy import parse_policy

    return parse_policy(joined.organisation.policy.read_text()).bases


def test_a_second_process_for_one_coordinator_is_refused(joined):
    from fedpeft.errors import RunError
    from fedpeft_clients.service.service import _alone, running

    with _alone(joined.grant):
        assert running(joined.grant)
        with pytest.raises(RunError, match="already"), _alone(joined.grant):
            pass
    assert not running(joined.grant)
