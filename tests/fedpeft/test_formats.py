"""State of another version: older is migrated with a copy kept, newer is left alone with one line."""

import json
import sqlite3

import numpy as np
import pytest

from fedpeft import flower
from fedpeft._version import __version__
from fedpeft.config import build_config, canonical, load
from fedpeft.errors import FedPeftError, RunError
from fedpeft.privacy import Ledger
from fedpeft.protocol.messages import OLDEST, PROTOCOL, run_id, spoken
from fedpeft.runstore import Format, formats, write_json
from fedpeft.runstore.formats import KEY

STEPS = (
    lambda facts: facts | {"port": facts["port"] + 1},
    lambda facts: facts | {"motto": str(facts["port"])},
)
NEWER = "has format 99, this fedpeft reads up to 1: a newer version wrote it; upgrade fedpeft on this machine"


@pytest.mark.parametrize("start", [{"port": 1}, {KEY: 1, "port": 1}, {KEY: 2, "port": 2}])
def test_an_older_file_is_migrated_in_order_and_kept(tmp_path, start):
    path, form = tmp_path / "server.json", Format(STEPS)
    write_json(path, start)
    before = path.read_bytes()
    assert form.read(path, {}) == {"port": 2, "motto": "2"}
    assert (tmp_path / f"server.json.format{start.get(KEY, 1)}").read_bytes() == before
    assert json.loads(path.read_text()) == {KEY: 3, "port": 2, "motto": "2"}
    assert form.read(path, {}) == {"port": 2, "motto": "2"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_crash_at_any_step_loses_nothing(tmp_path, monkeypatch):
    path, form = tmp_path / "server.json", Format(STEPS)
    write_json(path, {"port": 1})
    before = path.read_bytes()
    for function in ("sync_folder", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(formats, function, lambda *_: (_ for _ in ()).throw(OSError("power")))
            if function == "sync_folder" and (tmp_path / "server.json.format1").exists():
                continue
            with pytest.raises(OSError, match="power"):
                form.read(path, {})
        assert path.read_bytes() == before
    assert form.read(path, {}) == {"port": 2, "motto": "2"}
    assert (tmp_path / "server.json.format1").read_bytes() == before


@pytest.mark.parametrize("number", [4, 99, 0, -1, "2", None, True, 1.0])
def test_an_unknown_number_changes_nothing(tmp_path, number):
    path = tmp_path / "server.json"
    write_json(path, {KEY: number, "port": 1})
    before = path.read_bytes()
    with pytest.raises(RunError, match="upgrade fedpeft on this machine; nothing was changed"):
        Format(STEPS).read(path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert Format(STEPS).read(tmp_path / "none.json", "missing") == "missing"


def _coordinator(folder):
    from fedpeft.trust import Signer, new_transport_key, public_line
    from fedpeft_server.service.node_registry import Node, Registry
    from fedpeft_server.service.server_home import RunStatus, ServerHome, Settings, read_status, write_status

    home = ServerHome.create(folder / "server", Settings("n", "127.0.0.1", "127.0.0.1", 1, 2, 3, 4))
    line, key = public_line(new_transport_key()).decode(), Signer.generate().public.hex()
    Registry(home)._write("nodes.json", {"clinic": Node(line, key, "f", "enrolled", 1.0)})
    Registry(home).new_token("harbour", 1)
    run = home.runs / "first"
    run.mkdir()
    write_status(run, RunStatus("running"))
    yield home.path / "server.json", lambda: home.settings
    yield home.path / "nodes.json", lambda: Registry(home).nodes()
    yield home.path / "tokens.json", lambda: Registry(home)._tokens()
    yield run / "status.json", lambda: read_status(run)


def _organisation(folder):
    from fedpeft_clients.governance.organisation import GRANT, DataSet, init_organisation, open_organisation
    from fedpeft_clients.rounds.run_home import create_home, open_home

    made = init_organisation(folder / "node", "clinic", "")
    made.add("records", DataSet("f", "lineage", 3))
    grant = made.path / "coordinators" / "aa" / "grant.json"
    facts = {"address": "h:1", "coordinator": "00", "app": "00", "federation": "n", "issued": 1}
    GRANT.write(grant, facts)
    create_home(folder / "home", "clinic", [], build_config({}))
    yield made.path / "organisation.json", lambda: open_organisation(made.path)
    yield made.path / "data.json", made.datasets
    yield grant, made.grants
    yield folder / "home" / "node.json", lambda: open_home(folder / "home")


@pytest.mark.parametrize("role", [_coordinator, _organisation])
def test_every_state_file_knows_its_format(tmp_path, role):
    for path, read in role(tmp_path):
        expected, facts = read(), json.loads(path.read_text())
        write_json(path, {key: value for key, value in facts.items() if key != KEY})
        assert facts[KEY] == 1 and read() == expected, "a file of the first release has no number"
        write_json(path, facts | {KEY: 99})
        kept = path.read_bytes()
        with pytest.raises(FedPeftError, match=NEWER) as caught:
            read()
        assert "damaged" not in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == kept


def test_a_checkpoint_and_a_ledger_of_a_newer_version(tmp_path):
    from fedpeft_server.rounds import checkpoints

    made = checkpoints.Checkpoint(3, {"keys": {}}, {"values": np.zeros(2)})
    checkpoints.save(tmp_path, made)
    assert checkpoints.latest(tmp_path).facts == {"keys": {}}
    file = tmp_path / "checkpoints" / "0003" / "state.npz"
    checkpoints.save_arrays(file, made.arrays, {"keys": {}, "round": 3})
    assert checkpoints.latest(tmp_path).round == 3, "of the first release"
    checkpoints.save_arrays(file, made.arrays, {KEY: 99, "round": 3})
    with pytest.raises(RunError, match=NEWER):
        checkpoints.latest(tmp_path)
    path = tmp_path / "ledger.sqlite"
    Ledger(path).entries()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.execute("PRAGMA user_version = 0")
    Ledger(path).entries()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FedPeftError, match=NEWER):
        Ledger(path).entries()


def test_an_app_has_one_hash_in_all_versions():
    bundle, _ = flower.thin_app()
    assert __version__.encode() not in bundle and str(PROTOCOL).encode() + b".0.0" not in bundle


@pytest.mark.parametrize(
    ("newest", "oldest", "common"),
    [
        (PROTOCOL, OLDEST, (PROTOCOL, "")),
        (PROTOCOL + 1, OLDEST, (PROTOCOL, "")),
        (PROTOCOL + 1, PROTOCOL + 1, (0, "node")),
        (OLDEST - 1, OLDEST - 1, (0, "coordinator")),
        (OLDEST - 1, 0, (0, "coordinator")),
    ],
)
def test_ranges_that_meet_work_together(newest, oldest, common):
    assert spoken(newest, oldest) == common


def test_a_setting_that_a_later_version_adds_leaves_runs_their_names(monkeypatch):
    config = build_config({})
    named, whole = run_id(config), canonical(config)
    monkeypatch.setattr(load, "ADDED", (("federation", "quorum", 0),))
    assert b'"quorum"' in whole and b'"quorum"' not in canonical(config)
    other = build_config({"federation": {"quorum": 2}})
    assert canonical(other) == canonical(other) != canonical(config) and run_id(config) != named
    monkeypatch.setattr(load, "ADDED", ())
    assert run_id(other) != named
