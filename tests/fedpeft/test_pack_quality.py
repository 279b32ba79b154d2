"""Adapters trained by plain peft on three architectures: sizes, held-out loss, and the search for either."""

import json
import warnings

import numpy as np
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.errors import DataError, ExchangeError
from fedpeft.evaluation.exported import evaluator_of_records
from fedpeft.packing import search
from fedpeft.packing.pack import compress, info, pack, unpack
from fedpeft.packing.peft_folder import read_adapter
from fedpeft.packing.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TARGETS = {
    "llama": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
}
ANSWERS = {"green": " yes", "red": " no", "blue": " seven", "bank": " four"}
FILLER = ("the", "patient", "asked", "for", "a", "letter", "please", "send", "invoice", "again", "nurse")


def rows(count, seed):
    rng = np.random.default_rng(seed)
    keys = [str(key) for key in rng.choice(list(ANSWERS), count)]
    texts = [[*rng.choice(FILLER, 5), key] for key in keys]
    return [
        {"prompt": " ".join(map(str, text)), "completion": ANSWERS[key]}
        for text, key in zip(texts, keys, strict=True)
    ]


def train(base_folder, architecture, out):
    """A LoRA that plain peft trains for some steps of AdamW."""
    import peft
    import torch

    from fedpeft.bases.load import load_apart
    from fedpeft.config.models import BaseConfig
    from fedpeft.data import Record, collate, tokenise
    from fedpeft.training.loss import per_example_loss

    base = load_apart(BaseConfig(model=str(base_folder), device="cpu"))
    examples = tokenise([Record(**row) for row in rows(256, 0)], base.tokenizer, DataConfig())
    torch.manual_seed(0)
    base.model.name_or_path = str(base_folder)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=TARGETS[architecture],
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    model = peft.get_peft_model(base.model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(80):
        batch = collate([examples[i] for i in rng.choice(len(examples), 16)], base.pad_id)
        optimiser.zero_grad()
        per_example_loss(model, batch, "causal-lm").mean().backward()
        optimiser.step()
    model.save_pretrained(out)


@pytest.fixture(scope="module", params=list(TARGETS))
def trained(request, tiny_model_folder, tmp_path_factory):
    """Folder of a trained adapter, a judge with held-out records, and the file of these."""
    folder = tmp_path_factory.mktemp(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        train(tiny_model_folder(request.param), request.param, folder / "adapter")
        records = folder / "held-out.jsonl"
        records.write_text("".join(json.dumps(row) + "\n" for row in rows(96, 1)))
        judge = evaluator_of_records(folder / "adapter", records, None, DataConfig())
    return folder / "adapter", judge, records


def test_the_trained_adapters_have_learned(trained):
    folder, judge, _ = trained
    start = {
        name: value * (0 if "lora_B" in name else 1) for name, value in read_adapter(folder).tensors.items()
    }
    base = judge.measure(start)
    assert judge.before.loss < 0.5 * base.loss
    assert judge.before.accuracy > 0.9 and judge.loaded.labels == sorted(ANSWERS.values())


def shannon(density):
    return -density * np.log2(density / 2) - (1 - density) * np.log2(1 - density) if density else 0


def test_sizes_and_losses_at_five_ten_and_twenty_percent(trained, tmp_path):
    folder, judge, _ = trained
    files = read_adapter(folder)
    changes = sum(value.size for name, value in files.tensors.items() if "lora_B" in name)
    losses = []
    for density in (0.05, 0.1, 0.2):
        recipe = Recipe(codec="ternary", density=density, rest="int8")
        point = search.measure(files, recipe, judge)
        facts = pack(folder, tmp_path / f"{density}.fpa", recipe)
        assert facts.bytes_total == point.bytes
        ternary = next(part for part in facts.parts if part.codec == "ternary")
        assert ternary.values == changes
        # Shannon's bound, the code's 3 % over it, and the fields of every tensor
        assert ternary.bytes <= 1.03 * changes * shannon(density) / 8 + 4 * ternary.tensors + 8
        compeft = search.measure(files, Recipe(codec="ternary", density=density, alpha=1.0), judge)
        losses.append(point.loss)
        print(f"{density:.0%}: {point.ratio:.1f}x {point.change:+.0%}, ComPEFT {compeft.change:+.0%}")
        assert np.isfinite(point.loss) and point.loss < compeft.loss
    assert losses[2] < losses[0]


def test_levels_are_small_and_lose_little(trained, tmp_path):
    import peft
    import torch

    folder, judge, _ = trained
    facts = pack(folder, tmp_path / "a.fpa")
    point = search.measure(read_adapter(folder), Recipe(), judge)
    print(f"levels: {point.ratio:.1f}x {point.loss - judge.before.loss:+.4f} of {judge.before.loss:.4f}")
    assert facts.ratio > 5 and facts.parts[0].bits_per_value < 5.6
    assert point.loss <= 1.003 * judge.before.loss
    coarse = search.measure(read_adapter(folder), Recipe(step=0.5), judge)
    assert coarse.ratio > 7.5 and coarse.loss <= 1.03 * judge.before.loss
    unpack(tmp_path / "a.fpa", tmp_path / "back")
    from transformers import AutoModelForCausalLM

    name = json.loads((tmp_path / "back/adapter_config.json").read_text())["base_model_name_or_path"]
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), str(tmp_path / "back"))
    state = peft.get_peft_model_state_dict(model)
    judge.measure({name: value.detach().numpy() for name, value in state.items()})
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.allclose(
            model.eval()(input_ids=ids).logits, judge.loaded.model(input_ids=ids).logits, atol=1e-4
        )


def test_a_judge_restores_what_it_is_given(trained):
    folder, judge, _ = trained
    files = read_adapter(folder)
    judge.measure({name: np.zeros_like(value) for name, value in files.tensors.items()})
    assert judge.measure(files.tensors) == judge.before


def test_the_finest_file_within_a_size_is_found(trained):
    files = read_adapter(trained[0])
    for codec in ("levels", "ternary"):
        rungs = search._rungs(Recipe(codec=codec))
        for limit in (files.bytes // 11, files.bytes // 8):
            found = search.to_size(files, Recipe(codec=codec), limit)
            place = rungs.index(found)
            assert len(compress(files, found)) <= limit
            assert place == len(rungs) - 1 or len(compress(files, rungs[place + 1])) > limit
            assert place == len(rungs) - 1 or len(compress(files, found)) > 0.95 * limit
    with pytest.raises(ExchangeError, match="too few: levels needs at least"):
        search.to_size(files, Recipe(), 100)


def test_the_smallest_file_within_a_loss_is_found(trained):
    folder, judge, _ = trained
    files = read_adapter(folder)
    found = search.to_loss(files, Recipe(), 0.1, judge)
    point = search.measure(files, found, judge)
    assert point.change <= 0.1
    assert point.bytes < len(compress(files, Recipe(step=0.05)))
    with pytest.raises(ExchangeError, match="cannot keep the loss within"):
        search.to_loss(files, Recipe(codec="ternary", rest="int8"), 1e-6, judge)


def test_the_best_alpha_is_found(trained, monkeypatch):
    folder, judge, _ = trained
    files = read_adapter(folder)
    monkeypatch.setattr(search, "ALPHAS", (0.5, 2.0))
    found = search.over_alphas(files, Recipe(), judge, (0.2, 0.5))
    losses = {
        (density, alpha): search.measure(
            files, Recipe(codec="ternary", density=density, alpha=alpha), judge
        ).loss
        for density in (0.2, 0.5)
        for alpha in (0.5, 2.0)
    }
    assert (found.density, found.alpha) == min(losses, key=losses.get)


def test_the_table_holds_measured_points(trained):
    folder, judge, _ = trained
    files = read_adapter(folder)
    points = list(search.table(files, Recipe()))
    assert all(point.loss is None and point.bytes == len(compress(files, point.recipe)) for point in points)
    assert {point.recipe.density for point in points if point.recipe.alpha} == set(search.DENSITIES)
    point = search.measure(files, points[2].recipe, judge)
    assert point.change == pytest.approx(point.loss / judge.before.loss - 1)


def test_a_claim_is_what_was_measured(trained, tmp_path):
    folder, judge, records = trained
    files = read_adapter(folder)
    claim = judge.claim(files.tensors)
    assert (claim.loss, claim.packed_loss, claim.records) == (judge.before.loss, judge.before.loss, 96)
    pack(folder, tmp_path / "a", claim=claim)
    plain = pack(folder, tmp_path / "b")
    assert info(tmp_path / "a").bytes_total <= plain.bytes_total + search.CLAIM_BYTES
    with pytest.raises(DataError, match="no records"):
        evaluator_of_records(folder, records.parent / "absent", None, DataConfig())


def test_a_classifier_is_judged_as_one(tiny_base, tmp_path):
    from fedpeft.adapters import attach, export
    from fedpeft.config.models import AdapterConfig

    base = tiny_base("bert", num_labels=4, task="sequence-classification")
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    rng = np.random.default_rng(0)
    attached.load(0.5 * rng.standard_normal(attached.layout.size).astype(np.float32))
    export(attached, tmp_path / "adapter")
    records = tmp_path / "held-out.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows(32, 1)))
    judge = evaluator_of_records(tmp_path / "adapter", records, None, DataConfig())
    files = read_adapter(tmp_path / "adapter")
    assert judge.loaded.labels == sorted(ANSWERS.values()) and judge.measure(files.tensors) == judge.before
    point = search.measure(files, Recipe(seed=0), judge)
    assert abs(point.change) < 0.1 and point.ratio > 3
