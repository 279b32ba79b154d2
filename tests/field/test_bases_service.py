"""Bases that a run would refuse are found by the doctor of a node and when a run is submitted."""

import json
import os

import pytest

from fedpeft.bases.files import content_hash
from fedpeft.flower import free_port
from fedpeft.trust import Signer, new_transport_key, public_line
from fedpeft_server.service.node_registry import Node, Registry
from fedpeft_server.service.server_home import ServerHome, Settings

from .input_data import write_lines

REFUSED = {
    "xlnet": "a later token changes",
    "nan": "its logits are not finite in float32",
}


@pytest.fixture
def doctor(fedpeft, monkeypatch, tmp_path):
    """What ``fedpeft node doctor`` says of bases that the policy allows, by state."""
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    assert fedpeft("node", "init", "clinic").code == 0
    policy = tmp_path / "home/node/clinic/policy.toml"
    text = policy.read_text().replace("[bases]", "")

    def examine(*bases, quantisation="none"):
        lines = [f'"{content_hash(base, quantisation)}" = "{base}"\n' for base in bases]
        policy.write_text(f"{text}\n[bases]\n{''.join(lines)}")
        checks = json.loads(fedpeft("node", "doctor", "--json").out)["checks"]
        return [(check["state"], check["words"]) for check in checks if check["check"] == "base"]

    return examine


def test_the_doctor_tries_each_base_of_the_policy(doctor, inputs):
    """Each is judged for itself: what is wrong with the first hides nothing of the others."""
    names = ["nan", "llama", "roberta514"]
    checks = doctor(*map(inputs.base, names))
    assert [state for state, _ in checks] == ["ok", "wrong", "ok", "ok", "ok", "ok"]
    assert REFUSED["nan"] in checks[1][1]
    assert checks[3][1].endswith("was loaded and tried for causal-lm")
    assert checks[5][1].endswith("was loaded and tried for sequence-classification")


def test_the_doctor_tries_the_quantisation_that_was_agreed(doctor, inputs):
    states = [state for state, _ in doctor(inputs.base("llama"), quantisation="nf4")]
    assert states == ["ok", "ok"]


def test_the_doctor_does_not_load_what_may_not_fit(doctor, inputs, monkeypatch):
    monkeypatch.setattr("fedpeft_clients.cli.doctor.WEIGHTS_TIMES", 1 << 40)
    state, words = doctor(inputs.base("llama"))[1]
    assert state == "note" and "was not tried" in words


@pytest.fixture
def submit(fedpeft, inputs, tmp_path):
    """Submits a run on a base to a coordinator with two nodes."""
    home = ServerHome.create(
        tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *(free_port() for _ in range(4)))
    )
    nodes = {
        name: Node(
            public_line(new_transport_key()).decode(), Signer.generate().public.hex(), name, "enrolled", 1.0
        )
        for name in ("a", "b")
    }
    Registry(home)._write("nodes.json", nodes)

    def run(base, *options, **settings):
        scenario = tmp_path / "scenario.toml"
        scenario.write_text(f"[base]\nmodel = '{inputs.base(base)}'\n[federation]\nnodes = 2\n")
        pairs = (f"{key.replace('__', '.')}={value}" for key, value in settings.items())
        chosen = [word for pair in pairs for word in ("--set", pair)]
        return fedpeft("server", "submit", scenario, "--home", home.path, *chosen, *options)

    run.runs = home.runs
    return run


@pytest.mark.parametrize(("name", "says"), [*REFUSED.items(), ("reversible", "cannot train its adapter")])
def test_a_refused_base_is_refused_when_a_run_is_submitted(submit, name, says):
    done = submit(name)
    assert says in done.error and done.code == 4
    assert os.listdir(submit.runs) == []


@pytest.mark.parametrize(
    ("base", "settings", "says"),
    [
        ("gpt2-16", {"data__max_length": 17}, "data.max_length = 17 is above the 16 positions"),
        ("llama", {"adapter__target_modules": "nothing"}, "fits no linear module"),
    ],
)
def test_settings_that_do_not_fit_the_base_are_refused_too(submit, base, settings, says):
    done = submit(base, **settings)
    assert says in done.error and done.code == 2
    assert os.listdir(submit.runs) == []


def test_a_submitted_run_says_what_it_adapts_and_what_is_to_be_known(submit, tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    write_lines(tmp_path / "own.jsonl", [row, row])
    done = submit("chatml", "--eval-data", tmp_path / "own.jsonl", data__messages="messages")
    assert done.code == 0, done.err
    assert "adapts 7 of 15 weight matrices" in done.out
    assert "turns after the assistant's last are left out: 2 records" in done.out
    facts = json.loads(submit("chatml", "--name", "second", "--json").out)
    assert facts["adapter"]["adapted"] == 7 and facts["notes"] == []
