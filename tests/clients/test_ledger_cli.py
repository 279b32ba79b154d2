"""`fedpeft node ledger`: what a privacy officer sees, and what an outsider can check."""

from __future__ import annotations

import json
import sqlite3

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.privacy.accounting import Pure, Steps, epsilon
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.trust import Signer
from fedpeft_clients.cli.node import register

PLAN = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)
OWN = Signer.from_seed(b"own")


@pytest.fixture
def home(tmp_path):
    """A folder with a signed ledger: two rounds and a count of patients, one open round of staff."""
    ledger = Ledger(tmp_path / "clinic" / "ledger.sqlite", None, OWN)
    first = ledger.reserve("patients", "0123456789abcdef", 1, PLAN, 5)
    ledger.started(first)
    ledger.released(first, "ab" * 32)
    ledger.spend("patients", "count of records", Pure(0.1, 1), 1e-5)
    ledger.started(ledger.reserve("patients", "0123456789abcdef", 2, PLAN, 5))
    ledger.reserve("staff", "0123456789abcdef", 1, None, 5)
    return ledger.path.parent


def node(*arguments):
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["node", "ledger", *map(str, arguments)])


def test_show_lists_what_was_spent(home):
    shown = node("show", home)
    assert shown.exit_code == 0
    for text in ("patients", "0123456789ab", "count of reco", "released", "started", "reserved", "no limit"):
        assert text[:12] in shown.stdout
    assert "unbounded of no limit" in shown.stdout and "not private" in shown.stdout


def test_show_for_machines(home):
    facts = json.loads(node("show", home, "--json").stdout)
    joint = epsilon([Steps(0.1, 1.0, 10), Pure(0.1, 1)], 1e-5)
    patients, staff = facts["lineages"]
    assert patients["epsilon"] == patients["epsilon_365_days"] == pytest.approx(joint)
    assert (patients["unit"], patients["trust"], patients["delta"]) == ("record", "local", 1e-5)
    assert staff["epsilon"] == staff["epsilon_365_days"] == "unbounded"
    states = [(entry["seq"], entry["state"]) for entry in facts["entries"]]
    assert states == [(2, "released"), (5, "spend"), (6, "started"), (8, "reserved")]
    reached = [entry["epsilon"] for entry in facts["entries"]]
    assert reached[:3] == sorted(reached[:3]) and reached[2] == pytest.approx(joint, rel=0.01)
    assert reached[3] == "unbounded"
    assert facts["key"] == OWN.public.hex() and facts["head"].startswith("8:")


def test_show_of_one_data_set(home):
    facts = json.loads(node("show", home / "ledger.sqlite", "--lineage", "staff", "--json").stdout)
    assert [total["lineage"] for total in facts["lineages"]] == ["staff"]
    assert [entry["seq"] for entry in facts["entries"]] == [8]


def test_show_puts_the_budget_of_a_home_beside_what_was_spent(organisation):
    privacy = {
        "unit": "record",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.3,
        "budget": 9.0,
        "yearly_budget": 5.0,
    }
    home, _ = organisation(privacy=privacy)
    Ledger(home.ledger).reserve(home.lineage, "run", 1, PLAN, 5)
    (total,) = json.loads(node("show", home.path, "--json").stdout)["lineages"]
    assert (total["lineage"], total["budget"], total["yearly_budget"]) == ("clinic", 9.0, 5.0)
    assert "of 9" in node("show", home.path).stdout


def test_an_export_shows_and_verifies_like_the_ledger(home, tmp_path):
    file = tmp_path / "export.jsonl"
    assert node("export", home, "-o", file).exit_code == 0
    assert node("export", home).stdout == file.read_text()
    assert node("verify", file, "--key", OWN.public.hex()).stdout == node("verify", home).stdout
    assert node("show", file, "--json").stdout == node("show", home, "--json").stdout
    assert isinstance(node("export", home, "-o", file).exception, ConfigError)


def test_verify_names_the_head_and_accepts_it_later(home):
    facts = json.loads(node("verify", home, "--json").stdout)
    Ledger(home / "ledger.sqlite", None, OWN).reserve("patients", "run", 3, PLAN, 5)
    assert node("verify", home, "--known", facts["head"], "--key", facts["key"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--key", "00" * 32], "expected key 0000"),
        (["--known", "8:" + "0" * 64], "rolled back or replaced"),
        (["--known", "9:" + "0" * 64], "rolled back or replaced"),
    ],
)
def test_a_foreign_or_rolled_back_ledger_exits_as_damaged(home, options, cause):
    error = node("verify", home, *options).exception
    assert isinstance(error, PrivacyError) and error.exit_code == 6
    assert cause in str(error)


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_changed_ledger_is_not_shown(home, command):
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER no_update")
        db.execute("UPDATE entries SET body = replace(body, 'patients', 'visitors') WHERE seq = 6")
    db.close()
    error = node(command, home).exception
    assert isinstance(error, PrivacyError) and "changed at entry 6" in str(error)


@pytest.mark.parametrize(
    "options", [["--key", "abc"], ["--key", "ab"], ["--known", "8"], ["--known", "x:" + "0" * 64]]
)
def test_options_that_cannot_be_read_are_refused(home, options):
    assert isinstance(node("verify", home, *options).exception, ConfigError)


def test_a_place_without_a_ledger_is_refused_and_stays_empty(tmp_path):
    error = node("show", tmp_path).exception
    assert isinstance(error, PrivacyError) and "there is no ledger" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_of_another_version_is_shown_with_its_cause(home):
    from fedpeft.privacy.ledger.store import insert, session, transaction

    ledger = Ledger(home / "ledger.sqlite", None, OWN)
    body = ledger.entries()[1].body | {"event": {"kind": "quantum", "repeats": 3}, "lineage": "visitors"}
    with session(ledger.path) as db, transaction(db):
        insert(db, ledger.chain().next_row(body, OWN))
    facts = json.loads(node("show", home, "--json").stdout)
    assert facts["lineages"][2]["epsilon"] is None
    assert "'quantum' is unknown" in facts["lineages"][2]["cause"]
    assert "visitors" in node("show", home).stdout


def test_each_promise_of_a_data_set_has_its_own_total(home):
    from dataclasses import replace

    person = replace(PLAN, unit="person", records_per_unit=2)
    Ledger(home / "ledger.sqlite", None, OWN).reserve("patients", "other", 1, person, 5)
    found = json.loads(node("show", home, "--budget-id", "patients", "--json").stdout)["lineages"]
    by_unit = {one["unit"]: one["epsilon"] for one in found}
    assert by_unit["person"] == "unbounded", "earlier rounds protect per record only"
    assert by_unit["record"] > epsilon([Steps(0.1, 1.0, 15), Pure(0.1, 1)], 1e-5)


def test_the_clock_is_confirmed_by_the_owner_alone(tmp_path):
    from fedpeft.privacy.ledger import Budget
    from fedpeft_clients.governance.organisation import init_organisation
    from fedpeft_clients.governance.policy import template

    made = init_organisation(tmp_path / "clinic", "clinic", template("strict"))
    past = Ledger(made.ledger, None, made.signer, clock=lambda: 1e9)
    past.reserve("patients", "run", 1, PLAN, 5)
    strict = Ledger(made.ledger, Budget(yearly=100.0), made.signer)
    with pytest.raises(PrivacyError, match="ledger clock --confirm"):
        strict.reserve("patients", "run", 2, PLAN, 5)
    shown = node("clock", "--home", made.path)
    assert shown.exit_code == 0 and "2001-09-09" in shown.stdout
    with pytest.raises(PrivacyError, match="clock"):
        strict.reserve("patients", "run", 2, PLAN, 5)
    assert json.loads(node("clock", "--confirm", "--home", made.path, "--json").stdout)["confirmed"]
    assert strict.reserve("patients", "run", 2, PLAN, 5).attempt == 1


def test_a_loss_is_declared_on_the_command_line_with_a_reason(tmp_path):
    from fedpeft_clients.governance.organisation import init_organisation
    from fedpeft_clients.governance.policy import template

    made = init_organisation(tmp_path / "clinic", "clinic", template("strict"))
    assert isinstance(node("declare", "--because", "x", "--home", made.path).exception, ConfigError)
    assert node("declare", "--home", made.path).exit_code == 2
    Ledger(made.ledger, None, made.signer).reserve("patients", "run", 1, PLAN, 5)
    shown = node("declare", "--because", "the log was deleted", "--home", made.path)
    assert shown.exit_code == 0 and "0 rounds charged again" in shown.stdout
    assert "the log was deleted" in made.outbox.path.read_text()
