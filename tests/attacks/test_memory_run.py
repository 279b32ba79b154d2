"""All attacks on the released adapter of a run directory, and what is left out where there is no material."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.adapters import attach
from fedpeft.bases import load_base
from fedpeft.config import build_config, dump_config
from fedpeft.data import Record, tokenise, write_records
from fedpeft.errors import AuditError
from fedpeft.runstore import RunStore, write_atomic, write_json
from fedpeft.training import LocalPlan, train_local
from fedpeft_attacks.memory import Effort, canary_scores, memory_findings, released
from fedpeft_attacks.memory.canaries import Canary, read_canaries, write_canaries
from fedpeft_attacks.memory.member_records import Material

WORDS = ["the", "patient", "asked", "for", "a", "letter", "and", "nurse", "wrote", "it", "today"]
SMALL = Effort(prompts=8)


def notes(count, seed, group="clinic"):
    rng = np.random.default_rng(seed)
    return [
        Record(f"{' '.join(rng.choice(WORDS, 3))} phone 0{rng.integers(10**6):06d}", " green", group)
        for _ in range(count)
    ]


def canaries(count, trained, times=2):
    rng = np.random.default_rng(count + trained)
    secrets = [f"{rng.integers(10**6):06d}" for _ in range(count)]
    names = [f"mr {place} {trained}" for place in range(count)]
    return [
        Canary(Record(f"code of {name}: {secret}", " green", "clinic", person=name), secret, times, trained)
        for name, secret in zip(names, secrets, strict=True)
    ]


@pytest.fixture(scope="module")
def run_of(tiny_model_folder, tmp_path_factory):
    """A function from numbers of canaries and steps to a finished run of one node."""

    def make(planted=2, steps=40):
        federation = {"rounds": 1, "local_steps": 6, "batch_size": 4, "lr": 2e-2}
        base = {"model": str(tiny_model_folder("llama")), "device": "cpu"}
        data = {"max_length": 64, "prompt_weight": 1.0}
        config = build_config(
            {"base": base, "adapter": {"rank": 8, "skip_layers": []}, "data": data, "federation": federation}
        )
        path = tmp_path_factory.mktemp("memory") / "run"
        secrets = [*canaries(planted, True), *canaries(planted, False)]
        records = [*notes(10, 0), *(c.record for c in secrets if c.trained for _ in range(c.times))]
        write_atomic(path / "config.toml", dump_config(config).encode())
        write_records(path / "nodes" / "clinic" / "train.jsonl", records)
        write_records(path / "data" / "test.jsonl", [*notes(10, 1), *notes(4, 2, "bank"), *notes(2, 0)])
        write_json(path / "data" / "labels.json", [])
        if planted:
            write_canaries(path / "nodes" / "clinic", secrets)
        _train(path, config, records, steps)
        return RunStore.open(path)

    return make


def _train(path, config, records, steps):
    base = load_base(config.base)
    attached = attach(base, config.adapter, config.run.seed)
    if steps:
        examples = tokenise(records, base.tokenizer, config.data)
        train_local(attached, examples, LocalPlan(steps, 7, lr=3e-2), np.random.default_rng(0))
    (path / "state").mkdir()
    np.savez(path / "state" / "final.npz", values=attached.get())


@pytest.fixture(scope="module")
def leaking(run_of):
    return run_of()


def test_an_adapter_that_has_learnt_its_records_by_heart_gives_them_away(leaking):
    attached, lines = released(leaking), []
    held, trained = attached.get(), [tensor.requires_grad for tensor in attached.model.parameters()]
    found = {one.name: one for one in memory_findings(leaking, attached, SMALL, lines.append)}
    assert np.array_equal(attached.get(), held) and len(lines) == 3
    assert [tensor.requires_grad for tensor in attached.model.parameters()] == trained
    assert found["canaries"].stands_out and found["canaries"].value >= 8
    assert found["canaries, greedy"].value >= 0.5 and found["canaries, greedy"].held_out == 0
    personal = found["personal data, sampled"]
    assert personal.value > 5 * max(personal.base, personal.held_out)
    assert found["loss"].stands_out and found["loss"].value > 0.95
    assert found["reference, canaries"].value == 1
    assert "loss at 10% false alarms" in found and "loss at 1% false alarms" not in found
    assert found["loss"].count == 10 and found["loss"].others == 10


def test_only_canaries_of_one_copy_speak_of_a_claim_per_record(leaking):
    attached = released(leaking)
    scores, coins = canary_scores(leaking, attached)
    assert scores.shape == coins.shape == (0,)
    write_canaries(leaking.path / "nodes" / "clinic", [*canaries(2, True, 1), *canaries(2, False, 1)])
    scores, coins = canary_scores(leaking, attached)
    write_canaries(leaking.path / "nodes" / "clinic", [*canaries(2, True), *canaries(2, False)])
    assert coins.tolist() == [True, True, False, False]
    assert scores[coins].min() > scores[~coins].max()


def test_all_copies_are_one_unit_of_a_claim_per_person(leaking, tmp_path):
    shutil.copytree(leaking.path, tmp_path / "run")
    privacy = {"unit": "person", "noise_multiplier": 1.0, "public_records": 8, "records_per_person": 2}
    facts = leaking.config.model_dump(mode="json") | {"privacy": privacy}
    facts["data"] |= {"person": "person"}
    facts["federation"] |= {"optimiser": "sgd"}
    facts["exchange"]["up"] |= {"codec": "sign", "error_feedback": False}
    write_atomic(tmp_path / "run" / "config.toml", dump_config(build_config(facts)).encode())
    for file in ("nodes/clinic/train.jsonl", "data/test.jsonl"):
        write_records(tmp_path / "run" / file, [replace(note, person="ms x") for note in notes(4, 7)])
    scores, coins = canary_scores(RunStore.open(tmp_path / "run"), released(leaking))
    assert coins.tolist() == [True, True, False, False] and len(scores) == 4


def test_canaries_without_a_secret_are_told_and_not_written_out(leaking, tmp_path):
    shutil.copytree(leaking.path, tmp_path / "run")
    home = tmp_path / "run" / "nodes" / "clinic"
    write_canaries(home, [replace(canary, secret="") for canary in read_canaries([home])])
    names = {one.name for one in memory_findings(RunStore.open(tmp_path / "run"), released(leaking), SMALL)}
    assert "reference, canaries" in names and "loss, canaries" in names
    assert not {name for name in names if name.startswith("canaries")}


def test_every_finding_stands_beside_its_baselines(leaking):
    for one in memory_findings(leaking, released(leaking), SMALL):
        assert one.interval[0] <= one.value <= one.interval[1], one.name
        assert json.dumps(one.__dict__) and one.count > 0 and one.others > 0
        assert (one.held_out is None) == (one.attack == "membership")


def test_an_untrained_adapter_gives_nothing_away(run_of):
    store = run_of(planted=4, steps=0)
    for one in memory_findings(store, released(store), SMALL):
        assert one.value == pytest.approx(one.base, abs=1e-3), one.name
        assert not one.stands_out or one.attack == "membership", one.name


def test_without_canaries_the_other_attacks_still_run(run_of):
    store = run_of(planted=0, steps=0)
    attacks = {one.attack for one in memory_findings(store, released(store), SMALL)}
    assert attacks == {"prompt-extraction", "membership"}


def test_members_are_compared_with_records_of_their_own_kind_that_no_node_has(leaking):
    material = Material.of(leaking, 100, 100)
    assert material.members == notes(10, 0)
    assert material.others == notes(10, 1)
    assert len(material.trained) == len(material.left_out) == 2
    assert len(Material.of(leaking, 5, 1).members) == 5


def test_a_run_that_has_not_finished_has_no_adapter_to_attack(run_of, tmp_path, leaking):
    (tmp_path / "config.toml").write_bytes((leaking.path / "config.toml").read_bytes())
    with pytest.raises(AuditError, match="finish it with --resume"):
        released(RunStore.open(tmp_path))


def test_a_run_without_its_nodes_records_has_nothing_to_try(leaking, tmp_path):
    (tmp_path / "config.toml").write_bytes((leaking.path / "config.toml").read_bytes())
    assert memory_findings(RunStore.open(tmp_path), released(leaking), Effort(shadows=4)) == []


def test_shadows_add_their_scores(leaking):
    found = memory_findings(leaking, released(leaking), Effort(prompts=8, shadows=4))
    names = {one.name: one for one in found}
    assert names["shadows"].value > 0.8
    assert "shadows at 10% false alarms" in names and "shadows, canaries" in names
