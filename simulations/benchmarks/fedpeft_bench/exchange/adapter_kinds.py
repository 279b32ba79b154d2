"""What pack, unpack, merge and eval make of each adapter kind of peft, on a tiny base of each architecture.

    python -m fedpeft_bench.exchange.adapter_kinds [--kinds "LoRA;DoRA"] [--architectures llama] [--step 0.1]

Every adapter is trained for some steps on one repeated batch, so that its values have grown by training and
not by chance. Printed is a Markdown table. For each architecture: of the fall of the loss that the adapter
has learned, the share that is left after pack and unpack, and in brackets the L2 error of the logits over
what the adapter does to them. Then whether the merged folder computes the same, and whether
``fedpeft adapter eval`` takes the adapter; where not, why.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.errors import FedPeftError
from fedpeft.packing.recipe import Recipe
from fedpeft_bench.exchange.adapter_kind_configs import ARCHITECTURES, kinds

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_VOCABULARY = len(_SPECIAL) + 95
_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_RATE = 5e-3
_RECORDS = [(f"question {i}", "yes" if i % 3 else "no") for i in range(12)]


@dataclass(frozen=True)
class Row:
    """One kind on one architecture: a figure, or why there is none, for each command."""

    architecture: str
    kind: str
    ratio: str
    learned: str
    logits: str
    merged: str
    evaluated: str


def make_base(architecture: str, folder: Path) -> Path:
    """A base of random weights with a tokenizer of single characters."""
    import torch
    import transformers

    torch.manual_seed(0)
    more: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}
    if architecture == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES, **more))
    elif architecture == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_SIZES, **more, head_dim=8))
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=4)
        )
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    symbols = _SPECIAL + [chr(code) for code in range(32, 127)]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def _batch() -> Any:
    """Token ids of all records, int64, shape ``(records, length)``."""
    texts = [f"{prompt} {answer}".ljust(20, ".") for prompt, answer in _RECORDS]
    return _tokenizer()(texts, return_tensors="pt").input_ids


def _loss(logits: Any, ids: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _plain(base: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base)


def train(base: Path, make: Callable[[], Any], folder: Path, steps: int) -> None:
    """Train an adapter of one kind on the batch, and save it as peft does."""
    import peft
    import torch

    torch.manual_seed(1)
    model: Any = peft.get_peft_model(_plain(base), make())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, ids = torch.optim.AdamW(trained, _RATE, weight_decay=0.0), _batch()
    model.train()
    for _ in range(steps):
        loss = _loss(_logits(model, ids), ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))


def _logits(model: Any, ids: Any) -> Any:
    """Logits of the tokens of the batch: virtual tokens before them have some of their own."""
    return model(input_ids=ids).logits[:, -ids.shape[1] :]


def _adapted(base: Path, folder: Path) -> Any:
    import peft
    import torch

    with torch.no_grad():
        return _logits(peft.PeftModel.from_pretrained(_plain(base), folder).eval(), _batch())


def measure(architecture: str, kind: str, base: Path, folder: Path, recipe: Recipe) -> Row:
    """The row of one saved adapter."""
    import torch

    with torch.no_grad():
        plain = _logits(_plain(base).eval(), _batch())
    want = _adapted(base, folder)
    packed = _refused(lambda: _packed(base, folder, (plain, want), recipe))
    ratio, learned, logits = packed.split("|") if packed.count("|") == 2 else (packed, "", "")
    merged = _refused(lambda: _merged(base, folder, plain, want))
    return Row(architecture, kind, ratio, learned, logits, merged, _refused(lambda: _evaluated(folder)))


def _packed(base: Path, folder: Path, logits: tuple[Any, Any], recipe: Recipe) -> str:
    from fedpeft.packing.pack import pack, unpack

    plain, want = logits
    facts = pack(folder, folder.parent / "a.fpa", recipe)
    unpack(folder.parent / "a.fpa", folder.parent / "back")
    again, ids = _adapted(base, folder.parent / "back"), _batch()
    before, after, packed = (float(_loss(values, ids)) for values in (plain, want, again))
    return f"{facts.ratio:.1f}x|{(before - packed) / (before - after):.1%}|{_over(again, want, plain)}"


def _merged(base: Path, folder: Path, plain: Any, want: Any) -> str:
    import torch

    from fedpeft.evaluation.adapter_folder import merge_folder

    merge_folder(folder, folder.parent / "merged", str(base))
    with torch.no_grad():
        return _over(_logits(_plain(folder.parent / "merged").eval(), _batch()), want, plain)


def _evaluated(folder: Path) -> str:
    from fedpeft.config.models import DataConfig
    from fedpeft.evaluation.adapter_folder import evaluate_folder

    records = folder.parent / "records.jsonl"
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in _RECORDS]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_folder(folder, records, None, DataConfig())
    return "yes"


def _over(logits: Any, want: Any, plain: Any) -> str:
    """Error of logits over the effect of the adapter."""
    return f"{float((logits - want).norm() / (want - plain).norm()):.2%}"


def _refused(figure: Callable[[], str]) -> str:
    try:
        return figure()
    except FedPeftError as error:
        return f"no: {_cause(str(error))}"
    except Exception as error:  # printed as what it is: a gap
        return f"FAILS: {type(error).__name__}: {str(error)[:80]}"


def _cause(line: str) -> str:
    """What a refusal says, without the folder that it starts with and what to do instead."""
    inner = re.search(r"\(\w+: (.*?)[.)]", line)
    reason = inner[1] if inner is not None else line.partition(": ")[2].partition(";")[0]
    return (reason.partition(", since ")[2] or reason[:100]).strip()


def rows(architectures: list[str], wanted: set[str], steps: int, recipe: Recipe) -> Iterator[Row]:
    """Every kind on every architecture, or those that are wanted."""
    for architecture in architectures:
        with TemporaryDirectory() as work:
            base = make_base(architecture, Path(work) / "base")
            for index, (kind, make) in enumerate(kinds(ARCHITECTURES[architecture]).items()):
                if wanted and kind not in wanted:
                    continue
                folder = Path(work) / str(index) / "adapter"
                try:
                    train(base, make, folder, steps)
                except Exception as error:  # peft does not have every method for every layer
                    yield Row(architecture, kind, f"peft: {type(error).__name__}", "", "", "", "")
                else:
                    yield measure(architecture, kind, base, folder, recipe)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Adapter kinds of peft through pack, merge and eval.")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--step", type=float, help="of levels; default: that of adapter pack")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from transformers.utils import logging as noise

    noise.set_verbosity_error()
    noise.disable_progress_bar()
    wanted = {kind for kind in options.kinds.split(";") if kind}
    architectures = options.architectures.split(",")
    measured = list(rows(architectures, wanted, options.steps, Recipe(step=options.step)))
    print(
        f"| kind | ratio | {' | '.join(architectures)} | merge | eval |\n{'|---' * (len(architectures) + 4)}|"
    )
    for kind in dict.fromkeys(row.kind for row in measured):
        print(_line([row for row in measured if row.kind == kind]))


def _line(of_kind: list[Row]) -> str:
    """One kind on all architectures."""
    made = [row for row in of_kind if not row.ratio.startswith("peft: ")]
    cells = [of_kind[0].kind, made[0].ratio if made else ""]
    cells += [f"{row.learned} ({row.logits})" if row.learned else row.ratio for row in of_kind]
    exact = {"yes" if _share(row.merged) < 1e-3 else row.merged for row in made}
    cells += [", ".join(sorted(exact)), ", ".join(sorted({row.evaluated for row in made}))]
    return f"| {' | '.join(cells)} |"


def _share(text: str) -> float:
    """A percentage as a number; infinite for a refusal."""
    return float(text[:-1]) / 100 if text.endswith("%") else float("inf")


if __name__ == "__main__":
    main()
