"""Settings chosen under differential privacy: short private trials, then the run, all within one epsilon.

Every trial is a private run of its own, and whoever sees what nodes send sees all trials, not only the
best. So trials and run compose plainly under one privacy-budget id, by PLD over all their events: noise of
the trials so that they spend a share of epsilon together, noise of the run so that all together spend no
more than epsilon. Private selection that shows only the best candidate costs less (Liu and Talwar 2019,
arXiv:1811.07971; Papernot and Steinke 2022, arXiv:2110.03620), but holds only against those who see nothing
else.

A trial is judged by the noisy losses that its nodes release anyway, or by public records: nothing else of the
records enters the choice.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedpeft.config import Config
from fedpeft.config.load import put_setting
from fedpeft.config.models import EMBEDDED
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.privacy import Ledger, PrivacyPlan, plan_from_config
from fedpeft.privacy.accounting import epsilon
from fedpeft.privacy.calibration import smallest_noise
from fedpeft.rng import stream
from fedpeft.runstore import RunStore, write_atomic, write_json
from fedpeft_simulations.federation_run import prepare, run
from fedpeft_simulations.progress import Progress

Score = Literal["released", "public"]
"""By the noisy training loss that leaves the nodes, or by the held-out loss on public records."""

Configure = Callable[[Sequence[str]], Config]
"""A scenario with more settings over it, each ``section.key=value``."""

TRIED = ("federation.", "adapter.", "exchange.", "privacy.clip")
"""Beginnings of settings that may be tried; others change what is promised, to whom, or for what."""
QUIET = ("run.baselines=[]", "audit.enabled=false", 'audit.rounds=["middle", -1]')
LOSS_SHARE = 0.2
"""Of trials that are judged by a released loss, where the scenario releases none."""


@dataclass(frozen=True)
class Search:
    """What is tried, and at what price.

    Attributes:
        candidates: the settings of each trial.
        share: of epsilon that all trials together may spend, in (0, 1).
        rounds: of a trial.
        score: what a trial is judged by.

    Raises:
        ConfigError: no candidates, or a share or number of rounds out of range.
    """

    candidates: tuple[tuple[str, ...], ...]
    share: float = 0.3
    rounds: int = 2
    score: Score = "released"

    def __post_init__(self) -> None:
        if not self.candidates or not 0 < self.share < 1 or self.rounds < 1:
            raise ConfigError(
                f"{len(self.candidates)} trials of {self.rounds} rounds, share {self.share:g}: needed are "
                "one trial, one round and a share between 0 and 1"
            )


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        settings: what it tried.
        loss: its score, in nats.
        error: standard error of that by noise; 0 of public records.
        epsilon: spent on the worst node so far, earlier trials included.
    """

    settings: tuple[str, ...]
    loss: float
    error: float
    epsilon: float


@dataclass(frozen=True)
class Tuned:
    """What a search led to.

    Attributes:
        trials: in order.
        chosen: the settings of the best trial.
        trial_noise: noise multiplier of the trials.
        noise: that of the run.
        epsilon: joint epsilon of trials and run, of the worst node, as its ledger has it.
        delta: at which it is read.
        run: folder of the run.
    """

    trials: tuple[Trial, ...]
    chosen: tuple[str, ...]
    trial_noise: float
    noise: float
    epsilon: float
    delta: float
    run: Path


def candidates(tries: Sequence[str], trials: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """All combinations of settings, or as many as asked for, drawn from them by the seed.

    Args:
        tries: each ``section.key=value,value``.
        trials: how many; 0: all.
        seed: public; of the draw.

    Raises:
        ConfigError: nothing to try, a text without values, or a setting that no trial may change.
    """
    lines: list[list[str]] = []
    for text in tries:
        key, separator, values = text.partition("=")
        if not separator or not all(value.strip() for value in values.split(",")):
            raise ConfigError(f"--try {text!r} must be key=value,value, such as federation.lr=10,50")
        if not key.strip().startswith(TRIED):
            raise ConfigError(
                f"--try {key.strip()!r} may not be tried: allowed are federation.*, adapter.*, exchange.* "
                "and privacy.clip; what is promised is the same in all trials"
            )
        lines.append([f"{key.strip()}={value.strip()}" for value in values.split(",")])
    grid = list(itertools.product(*lines)) if lines else []
    if 0 < trials < len(grid):
        places = np.sort(stream(seed, 0, "", "tuning").choice(len(grid), trials, replace=False))
        grid = [grid[place] for place in places]
    return tuple(grid)


def tune(configure: Configure, search: Search, out: Path, report: Progress) -> Tuned:
    """Run the trials, choose, run with what was chosen; everything lands in ``out``.

    ``privacy.epsilon`` of the scenario is for all of it. Each node has one ledger, which goes from run to run
    and refuses what is beyond that.

    Args:
        configure: the scenario.
        search: what is tried.
        out: a new folder: ``trials/NN``, ``run``, ``tuned.toml`` (the settings chosen) and ``tuning.json``.
        report: receives each event of each run.

    Raises:
        FedPeftError: ``out`` exists, the scenario is not private as it must be, or a run fails.
    """
    total = _require_private(configure(()), search.score)
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; choose another --out")
    configs = [_trial(configure, search, number) for number in range(len(search.candidates))]
    plans = [_plan(config) for config in configs]
    trial_noise = solve([], plans, search.share * total)
    trials, store = list[Trial](), None
    for number, config in enumerate(configs):
        store = _run(_noisy(config, trial_noise, total), out / "trials" / f"{number:02d}", store, report)
        spent = joint_epsilon(store)
        trials.append(Trial(search.candidates[number], *score_of(store, search.score), spent))
    chosen = min(trials, key=lambda trial: trial.loss).settings
    config = configure(chosen)
    noise = solve([plan.with_noise(trial_noise) for plan in plans], [_plan(config)], total)
    store = _run(_noisy(config, noise, total), out / "run", store, report)
    delta = config.privacy.delta
    tuned = Tuned(tuple(trials), chosen, trial_noise, noise, joint_epsilon(store), delta, store.path)
    write_json(out / "tuning.json", asdict(tuned) | {"run": str(tuned.run)})
    write_atomic(out / "tuned.toml", _toml(tuned, config).encode())
    return tuned


def solve(before: Sequence[PrivacyPlan], plans: Sequence[PrivacyPlan], target: float) -> float:
    """Smallest noise multiplier of all ``plans`` with which they and those before spend at most ``target``.

    Raises:
        PrivacyError: none is large enough: those before have spent it.
    """
    spent = [plan.event() for plan in before]
    delta = plans[0].delta

    def joint(noise: float, interval: float) -> float:
        return epsilon([*spent, *(plan.with_noise(noise).event() for plan in plans)], delta, interval)

    return smallest_noise(joint, target, f"{len(before) + len(plans)} runs at delta {delta:g}")


def joint_epsilon(store: RunStore) -> float:
    """What has been spent on the worst node, over all runs that its ledger has seen."""
    delta = store.config.privacy.delta
    return max(Ledger(home / "ledger.sqlite").spent(home.name, delta) for home in store.homes)


def score_of(store: RunStore, score: Score) -> tuple[float, float]:
    """Loss of a finished trial and its standard error: over the later half of its rounds, or at its end."""
    if score == "public":
        return float(store.summary["loss"]["federated"]), 0.0
    events = list(store.events("training"))
    later = events[len(events) // 2 :]
    losses, errors = ([event[name] for event in later] for name in ("loss", "standard_error"))
    return sum(losses) / len(later), math.hypot(*errors) / len(later)


def _require_private(config: Config, score: Score) -> float:
    """Epsilon of the whole search, if the scenario promises one that trials can share."""
    privacy = config.privacy
    if privacy.unit not in ("record", "person") or privacy.trust != "local" or privacy.epsilon is None:
        raise PrivacyError(
            "a private search needs privacy.unit = 'record' or 'person', privacy.trust = 'local' and "
            f"privacy.epsilon, the total (given: {privacy.unit!r}, {privacy.trust!r}, {privacy.epsilon})"
        )
    if privacy.noise == "discrete":
        raise PrivacyError("a private search solves for Gaussian noise alone: leave privacy.noise out")
    if privacy.randomness != "system":
        raise PrivacyError("a private search needs privacy.randomness = 'system': a seed protects nothing")
    if score == "public" and config.data.test is None and config.data.source != EMBEDDED:
        raise ConfigError(
            "without data.test the held-out records are the organisations' own: set data.test to public "
            "records, or score trials by the released loss"
        )
    return privacy.epsilon


def _trial(configure: Configure, search: Search, number: int) -> Config:
    rounds = (f"federation.rounds={search.rounds}", f"run.name=trial-{number:02d}", "federation.stop_after=0")
    config = configure((*search.candidates[number], *QUIET, *rounds))
    if search.score == "released" and not config.privacy.loss_share:
        privacy = config.privacy.model_copy(update={"loss_share": LOSS_SHARE})
        config = config.model_copy(update={"privacy": privacy})
    return config


def _plan(config: Config) -> PrivacyPlan:
    """The plan of a config at noise 1, which the caller replaces."""
    plan = plan_from_config(_noisy(config, 1.0, None))
    assert plan is not None
    return plan


def _noisy(config: Config, noise: float, budget: float | None) -> Config:
    """A config with a noise multiplier in place of an epsilon of its own, under the budget of the search."""
    changes = {"epsilon": None, "noise_multiplier": noise, "budget": budget}
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=changes)})


def _run(config: Config, out: Path, before: RunStore | None, report: Progress) -> RunStore:
    """A whole run, whose nodes go on with the ledgers of the run before."""
    store = prepare(config, out, False, report)
    for home in store.homes if before is not None else ():
        source = before.path / "nodes" / home.name / "ledger.sqlite" if before is not None else home
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(home / "ledger.sqlite")) as new:
            old.backup(new)
    return run(store.config, out, "resume", report)


def _toml(tuned: Tuned, config: Config) -> str:
    """The chosen settings, to be put into a scenario; what using them again costs is charged again."""
    import tomli_w

    settings, dumped = dict[str, Any](), config.model_dump(mode="json")
    for key in (text.partition("=")[0] for text in tuned.chosen):
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
        put_setting(settings, key, value)
    price = f"epsilon {tuned.epsilon:.4g} at delta {tuned.delta:g}"
    head = f"# Chosen by {len(tuned.trials)} private trials; these and the run spent {price}.\n"
    head += f"# Noise multiplier of the trials {tuned.trial_noise:g}, of the run {tuned.noise:g}."
    return f"{head}\n{tomli_w.dumps(settings)}"
