"""The main job from settings to exported adapter, on small models and small data."""

import csv
import json
import subprocess
import sys

import pytest

from fedpeft.config import load_config
from fedpeft.runstore import RunStore
from fedpeft.runstore.summary import RunSummary
from fedpeft_simulations.federation_run import run

SMALL = (
    "federation.rounds=2",
    "federation.local_steps=2",
    "federation.batch_size=4",
    "adapter.rank=4",
    "base.threads=1",
    "base.device=cpu",
    "run.baselines=[]",
)
QUIET = (*SMALL, "audit.enabled=false")
COLOURS = ("red", "green", "blue")

NOISY = "privacy.max_noise_to_signal=99"
"""These federations are far too small to learn under noise."""


def _simulate(out, *settings, mode="new"):
    return run(load_config(overrides=settings), out, mode, lambda event: None)


def _rows(name, count=24):
    return [
        {"question": f"{name} asked for a letter {i}", "answer": f" {COLOURS[i % 3]}"} for i in range(count)
    ]


def _write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pandas

        pandas.DataFrame(rows).to_parquet(path)


def _own(tmp_path, model, suffix=".jsonl"):
    folder = tmp_path / "records"
    folder.mkdir(parents=True)
    for name in ("clinic", "bank"):
        _write(folder / f"{name}{suffix}", _rows(name))
    columns = ("data.prompt=question", "data.completion=answer")
    return (*QUIET, f"base.model={model}", f"data.source={folder}", *columns)


@pytest.fixture(scope="module")
def embedded_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "embedded"
    settings = (
        "federation.nodes=2",
        "data.samples=24",
        "data.test_samples=24",
        "run.baselines=['local_only']",
        "audit.attacks=['span', 'released']",  # all of them: tests/regression
    )
    return _simulate(out, *SMALL, *settings)


def test_a_run_leaves_everything_that_the_design_names(embedded_run):
    for name in (
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "audit/report.json",
        "audit/report.html",
        "arms/local_only.json",
        "updates/r01",
        "updates/r02",
        "plots/bytes.svg",
        "plots/loss.svg",
    ):
        assert (embedded_run.path / name).exists(), name


def test_run_json_follows_its_schema_and_its_bytes_are_the_lengths_of_the_files(embedded_run):
    summary = RunSummary.model_validate(embedded_run.summary)
    up = list(embedded_run.path.glob("updates/r*/*.fpd"))
    assert len(up) == summary.nodes * summary.rounds == len(summary.updates)
    assert summary.bytes.up == sum(path.stat().st_size for path in up)
    assert summary.bytes.ratio_total > 10
    assert set(summary.loss) == {"base", "federated", "local_only"}
    assert summary.time.total_s == pytest.approx(summary.time.train_s + summary.time.overhead_s)


def test_the_envelopes_are_close_to_shannons_bound(embedded_run):
    sent = embedded_run.summary["bytes"]
    assert 1.0 < sent["bits_per_parameter"] / sent["entropy_bits_per_parameter"] < 1.15


def test_the_adapter_loads_without_fedpeft_and_gives_the_runs_loss(embedded_run, tmp_path):
    from fedpeft_simulations.embedded import base_path

    (tmp_path / "judge.py").write_text(PLAIN_PEFT)
    arguments = [base_path(), embedded_run.adapter, embedded_run.test]
    command = [sys.executable, "-I", str(tmp_path / "judge.py"), *map(str, arguments)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert float(printed) == pytest.approx(embedded_run.summary["loss"]["federated"], rel=1e-4)


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, records = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
losses = []
for line in open(records):
    row = json.loads(line)
    prompt = tokenizer(row["prompt"]).input_ids
    answer = tokenizer(row["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    picked = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
    losses.append(-picked.mean().item())
assert not [name for name in sys.modules if name.startswith("fedpeft")]
print(sum(losses) / len(losses))
"""


def test_the_same_seed_gives_the_same_envelopes_and_another_seed_others(tiny_model_folder, tmp_path):
    settings = _own(tmp_path, tiny_model_folder())
    runs = [_simulate(tmp_path / name, *settings) for name in ("a", "b")]
    other = _simulate(tmp_path / "c", *settings, "run.seed=1")
    assert runs[0].summary["updates"] == runs[1].summary["updates"]
    assert not set(runs[0].summary["updates"]) & set(other.summary["updates"])
    adapters = [(store.adapter / "adapter_model.safetensors").read_bytes() for store in runs]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_files_of_every_format_give_the_same_adapter(tiny_model_folder, tmp_path, suffix):
    runs = [
        _simulate(tmp_path / f"run{kind}", *_own(tmp_path / kind, tiny_model_folder(), kind))
        for kind in (".jsonl", suffix)
    ]
    weights = [(store.adapter / "adapter_model.safetensors").read_bytes() for store in runs]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral", "gemma", "phi"])
def test_own_models_of_many_architectures(tiny_model_folder, tmp_path, architecture):
    store = _simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder(architecture)))
    summary = store.summary
    assert summary["loss"]["federated"] < summary["loss"]["base"]


@pytest.mark.parametrize(
    "settings",
    [
        ("adapter.aggregation=naive",),
        ("adapter.aggregation=reproject", "exchange.down.codec=dense-fp32", "adapter.ranks.bank=2"),
        (
            "adapter.aggregation=stack",
            "exchange.down.codec=dense-fp32",
            "exchange.up.error_feedback=false",
            "adapter.ranks.bank=2",
        ),
        ("adapter.method=miss",),
        ("adapter.method=ia3",),
        ("exchange.up.codec=int8", "exchange.down.codec=dense-bf16"),
        ("federation.server.name=adam", "federation.server.lr=0.01"),
        ("federation.optimiser=sgd", "federation.server.name=momentum", "federation.lr=0.05"),
        ("base.quantisation=nf4",),
        ("base.quantisation=int8",),
        ("base.task=sequence-classification",),
    ],
    ids=lambda settings: ",".join(setting.split(".", 1)[1] for setting in settings),
)
def test_every_way_to_run_gives_an_adapter_that_eval_confirms(tiny_model_folder, tmp_path, settings):
    from fedpeft.evaluation.adapter_folder import evaluate_run

    store = _simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder()), *settings)
    assert evaluate_run(store.path).loss == pytest.approx(store.summary["loss"]["federated"], rel=2e-3)


def test_a_private_run_claims_what_its_ledgers_hold(tiny_model_folder, tmp_path):
    privacy = ("privacy.unit=record", "privacy.epsilon=8", "privacy.public_records=16", NOISY)
    store = _simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder()), *privacy)
    claim = store.summary["privacy"]
    assert claim["unit"] == "record" and 0 < claim["epsilon"] <= 8
    assert {node["steps"] for node in claim["nodes"]} == {4}
    assert "-differential privacy per record" in (store.adapter / "README.md").read_text()


def test_private_runs_do_not_repeat_their_noise(tiny_model_folder, tmp_path):
    privacy = ("privacy.unit=record", "privacy.epsilon=8", "privacy.public_records=16", NOISY)
    settings = (*_own(tmp_path, tiny_model_folder()), *privacy)
    first, second = (_simulate(tmp_path / name, *settings) for name in ("a", "b"))
    assert not set(first.summary["updates"]) & set(second.summary["updates"])


@pytest.mark.parametrize("aggregation", ["frozen_a", "reproject"])
def test_the_state_is_judged_on_the_way_and_the_run_is_the_same(tiny_model_folder, tmp_path, aggregation):
    settings = (
        *_own(tmp_path, tiny_model_folder()),
        "federation.rounds=4",
        f"adapter.aggregation={aggregation}",
        "exchange.down.codec=dense-fp32",
    )
    plain = _simulate(tmp_path / "plain", *settings)
    watched = _simulate(tmp_path / "watched", *settings, "federation.evaluate_every=1")
    events = [e for e in watched.events("evaluation") if e["arm"] == "federated"]
    assert [event["round"] for event in events] == [1, 2, 3, 4]
    assert len({event["loss"] for event in events}) == 4
    weights = [(store.adapter / "adapter_model.safetensors").read_bytes() for store in (plain, watched)]
    assert weights[0] == weights[1]


def test_a_run_goes_on_without_the_files_it_was_made_from(tiny_model_folder, tmp_path):
    import shutil

    store = _simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder()))
    before = (store.adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "records")
    for name in ("adapter", "state", "checkpoints", "updates"):
        shutil.rmtree(store.path / name)
    (store.path / "run.json").unlink()
    run(load_config(), store.path, "resume", lambda event: None)
    assert (store.adapter / "adapter_model.safetensors").read_bytes() == before


def test_a_run_that_was_killed_before_its_homes_were_made_makes_them(tiny_model_folder, tmp_path):
    store = _simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder()))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "config.toml").write_bytes((store.path / "config.toml").read_bytes())
    resumed = run(load_config(), fresh, "resume", lambda event: None)
    assert resumed.summary["updates"] == store.summary["updates"]


def test_chats_are_judged_through_the_template_they_are_trained_with(tiny_model_folder, tmp_path):
    from fedpeft.evaluation.adapter_folder import evaluate_run
    from fedpeft.evaluation.held_out import HeldOut

    folder = tmp_path / "chats"
    folder.mkdir()
    for name in ("clinic", "bank"):
        talks = [
            {
                "chat": [
                    {"role": "user", "content": f"{name} asked for letter {i}"},
                    {"role": "assistant", "content": COLOURS[i % 3]},
                ]
            }
            for i in range(20)
        ]
        _write(folder / f"{name}.jsonl", talks)
    settings = (f"base.model={tiny_model_folder()}", f"data.source={folder}", "data.messages=chat")
    store = _simulate(tmp_path / "run", *QUIET, *settings)
    judge = HeldOut.of(store)
    assert "<|user|>" in judge.base.tokenizer.decode(judge.examples[0].ids)
    assert evaluate_run(store.path).loss == pytest.approx(store.summary["loss"]["federated"], rel=1e-4)


def test_the_summary_is_printed_from_run_json_alone(embedded_run, tiny_model_folder, tmp_path, capsys):
    from fedpeft_simulations.print_summary import print_summary

    print_summary(embedded_run)
    shown = capsys.readouterr().out
    assert "local_only" in shown and "over Shannon" in shown and "report.html" in shown
    print_summary(_simulate(tmp_path / "run", *_own(tmp_path, tiny_model_folder()), "federation.rounds=1"))
    shown = capsys.readouterr().out
    assert "nothing sent" in shown and "report.html" not in shown


def test_a_finished_run_is_not_run_again(embedded_run):
    before = (embedded_run.path / "run.json").stat().st_mtime_ns
    store = run(load_config(), embedded_run.path, "resume", lambda event: None)
    assert isinstance(store, RunStore)
    assert (embedded_run.path / "run.json").stat().st_mtime_ns == before


def test_a_dense_resync_is_not_taken_for_a_compressed_envelope(embedded_run, tmp_path):
    import shutil

    from fedpeft.adapters import attach
    from fedpeft.evaluation.held_out import HeldOut
    from fedpeft_simulations.run_summary import summarise

    copy = RunStore(tmp_path / "run")
    shutil.copytree(embedded_run.path, copy.path)
    (copy.path / "broadcasts" / "r02-full.fpd").write_bytes(b"a dense envelope")
    attached = attach(HeldOut.of(copy).base, copy.config.adapter, copy.config.run.seed)
    sent = summarise(copy, attached, {}).bytes
    assert sent.bits_per_parameter == embedded_run.summary["bytes"]["bits_per_parameter"]
