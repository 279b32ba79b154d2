"""What the options of ``fedpeft adapter pack`` mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.evaluation.exported import AdapterEvaluator
    from fedpeft.packing.pack import PackInfo
    from fedpeft.packing.peft_folder import AdapterFiles
    from fedpeft.packing.recipe import Recipe

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Goal:
    """What the file shall keep; at most one of them.

    Attributes:
        size: length of the file, such as ``300kB``.
        ratio: length of the weights file over that of the file.
        loss_change: rise of the held-out loss, such as ``1%``.
        alphas: take the best of ComPEFT's grid.
    """

    size: str | None = None
    ratio: float | None = None
    loss_change: str | None = None
    alphas: bool = False

    @property
    def evaluated(self) -> bool:
        """Whether it needs held-out records."""
        return self.loss_change is not None or self.alphas

    def check(self, step: float | None, density: float | None) -> None:
        """Refuse goals that contradict each other, or a step or density that is given.

        Raises:
            ConfigError: they do.
        """
        goals = [value for value in (self.size, self.ratio, self.loss_change) if value is not None]
        if len(goals) + self.alphas > 1:
            raise ConfigError("give one of --target-size, --ratio, --max-loss-change and --alpha-grid")
        if goals and (step, density) != (None, None):
            raise ConfigError("a goal determines --step and --density; give the goal or one of them")


@dataclass(frozen=True)
class HeldOut:
    """Where held-out records come from: a file with these columns, or a run directory; and the base."""

    path: Path | None
    prompt: str = "prompt"
    completion: str = "completion"
    base: str | None = None


@dataclass(frozen=True)
class Prepared:
    """An adapter that was read, how it is to be coded, and its evaluator."""

    files: AdapterFiles
    recipe: Recipe
    evaluator: AdapterEvaluator | None

    def pack(self, goal: Goal, density: float | None, out: Path) -> PackInfo:
        """Find the recipe for the goal and write the file, and its loss if there is an evaluator."""
        from fedpeft.packing.file_format import parse
        from fedpeft.packing.pack import compress, save, tensors_of

        recipe = self._find(goal, density)
        data = compress(self.files, recipe)
        if self.evaluator is not None:
            claim = self.evaluator.claim(tensors_of(parse(data, str(out))))
            data = compress(self.files, recipe, claim)
        return save(data, out)

    def _find(self, goal: Goal, density: float | None) -> Recipe:
        from fedpeft.packing import search

        if self.evaluator is not None and goal.alphas:
            densities = search.DENSITIES if density is None else [density]
            return search.over_alphas(self.files, self.recipe, self.evaluator, densities)
        if self.evaluator is not None and goal.loss_change is not None:
            return search.to_loss(self.files, self.recipe, parse_share(goal.loss_change), self.evaluator)
        if goal.size is None and goal.ratio is None:
            return self.recipe
        limit = parse_size(goal.size) if goal.size is not None else _limit(self.files.bytes, goal.ratio or 0)
        spare = search.CLAIM_BYTES if self.evaluator is not None else 0
        return search.to_size(self.files, self.recipe, limit - spare)


def prepare(adapter: Path, recipe: Recipe, held_out: HeldOut, evaluated: bool) -> Prepared:
    """Read an adapter, and load its evaluator if records are given or needed.

    The seed of a run, if the adapter belongs to one, is tried for its frozen factors.

    Raises:
        ConfigError: no adapter, or records are needed and there are none.
        DataError, BaseModelError: records or base cannot be read.
    """
    from fedpeft.config.models import EMBEDDED
    from fedpeft.packing.peft_folder import read_adapter
    from fedpeft.runstore import RunStore

    folder, run = adapter_of(adapter)
    files = read_adapter(folder)
    if run is not None:
        config = RunStore.open(run).config
        recipe = replace(recipe, seed=config.run.seed if recipe.seed is None else recipe.seed)
        if config.base.model == EMBEDDED:  # the file goes elsewhere, where the run's copy of the base is not
            files = replace(files, config=files.config | {"base_model_name_or_path": EMBEDDED})
    evaluator = _evaluator(folder, run, held_out) if evaluated or held_out.path is not None else None
    return Prepared(files, recipe, evaluator)


def recipe_of(
    codec: str | None, step: float | None, density: float | None, alpha: float | None, rest: str
) -> Recipe:
    """The recipe that the options describe: a density or an alpha asks for ternary.

    Raises:
        ConfigError: options that do not belong together, or an unknown codec.
        ExchangeError: a number is out of range.
    """
    from fedpeft.packing.recipe import CodedCodec, Recipe, RestCodec

    sparse = density is not None or alpha is not None
    chosen: Any = codec or ("ternary" if sparse else "levels")
    kind: Any = rest
    _check_known("codec", chosen, get_args(CodedCodec))
    _check_known("dense", kind, get_args(RestCodec))
    if chosen == "levels" and sparse:
        raise ConfigError("--density and --alpha belong to --codec ternary; levels have a --step")
    recipe = Recipe(codec=chosen, alpha=alpha, rest=kind)
    recipe = recipe if step is None else replace(recipe, step=step)
    return recipe if density is None else replace(recipe, density=density)


def adapter_of(path: Path) -> tuple[Path, Path | None]:
    """The adapter folder that a path means, and the run that it belongs to."""
    if (path / "config.toml").is_file():
        return path / "adapter", path
    run = path.absolute().parent
    return path, run if path.name == "adapter" and (run / "config.toml").is_file() else None


def parse_size(text: str) -> int:
    """Bytes of a size such as ``300kB``, ``1.5 MB`` or ``64KiB``.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is no size; write a number and B, kB, MB or GB, such as 300kB")
    return int(float(match[1]) * unit)


def parse_share(text: str) -> float:
    """A share such as ``1%`` or ``0.01``.

    Raises:
        ConfigError: it is none.
    """
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{text!r} is no share; write it as 1% or 0.01")
    return value


def _evaluator(folder: Path, run: Path | None, held_out: HeldOut) -> AdapterEvaluator:
    """The evaluator on the given records, else on those of the adapter's own run."""
    from fedpeft.config.models import DataConfig
    from fedpeft.evaluation.exported import evaluator_of_records, evaluator_of_run

    path = held_out.path if held_out.path is not None else run
    if path is None:
        raise ConfigError("a loss needs held-out records: give --eval FILE, or --eval RUN for a run's own")
    if (path / "config.toml").is_file():
        return evaluator_of_run(path, folder)
    columns = DataConfig(prompt=held_out.prompt, completion=held_out.completion)
    return evaluator_of_records(folder, path, held_out.base, columns)


def _limit(size: int, ratio: float) -> int:
    if not ratio >= 1:
        raise ConfigError(f"--ratio is {ratio}; it must be at least 1")
    return int(size / ratio)


def _check_known(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{option} {value!r} is unknown; there are {', '.join(allowed)}")
