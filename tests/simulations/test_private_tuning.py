"""A private search: what it tries, what it spends in all, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from functools import partial

import pytest

from fedpeft.config import load_config
from fedpeft.errors import ConfigError, FedPeftError, PrivacyError
from fedpeft.privacy import Ledger
from fedpeft.runstore import RunStore
from fedpeft_bench.privacy import tuning as benchmark
from fedpeft_simulations import private_tuning
from fedpeft_simulations.private_tuning import Search, candidates, score_of, solve, tune

TOTAL, SHARE = 6.0, 0.3
SMALL = (
    "federation.rounds=3",
    "federation.nodes=2",
    "federation.local_steps=2",
    "federation.batch_size=4",
    "data.samples=24",
    "data.test_samples=16",
    "adapter.rank=2",
    "base.threads=1",
    "base.device=cpu",
    "run.baselines=[]",
    "audit.enabled=false",
    "privacy.unit=record",
    f"privacy.epsilon={TOTAL}",
    "privacy.max_noise_to_signal=999",
)
TRIES = (("federation.lr=0.1", "federation.batch_size=4"), ("federation.lr=0.2", "federation.batch_size=6"))


def configured(more, settings=SMALL):
    return load_config(None, (*settings, *more))


def releases(ledger):
    """Rate, noise and steps of every round that a node has reserved."""
    events = [entry.body["event"] for entry in ledger.entries() if entry.body["kind"] == "reserve"]
    return [(event["sampling_probability"], event["noise_multiplier"], event["repeats"]) for event in events]


def test_trials_and_run_together_spend_no_more_than_epsilon(tmp_path, own_epsilon, monkeypatch):
    """In one ledger a node: the joint epsilon as an own FFT has it, too, within 2 % and never above ours."""
    scores = iter([(3.0, 0.1), (2.0, 0.1)])
    monkeypatch.setattr(private_tuning, "score_of", lambda *_: next(scores))
    tuned = tune(configured, Search(TRIES, SHARE, 2), tmp_path / "tuned", lambda event: None)
    assert tuned.chosen == TRIES[1] and tuned.trials[0].epsilon < tuned.trials[1].epsilon <= SHARE * TOTAL
    assert 0.98 * TOTAL < tuned.epsilon <= TOTAL
    trial, last = tuned.trial_noise, tuned.noise
    all_rounds = [*[(4 / 24, trial, 2)] * 2, *[(6 / 24, trial, 2)] * 2, *[(6 / 24, last, 2)] * 3]
    spent = [releases(Ledger(home / "ledger.sqlite")) for home in RunStore(tuned.run).homes]
    assert spent == [all_rounds, all_rounds]
    own = own_epsilon(all_rounds, 1e-5)
    assert own <= (1 + 1e-6) * tuned.epsilon <= 1.02 * own
    assert own_epsilon(all_rounds[:4], 1e-5) <= (1 + 1e-6) * tuned.trials[1].epsilon
    summary = json.loads((tuned.run / "run.json").read_text())
    assert summary["privacy"]["epsilon"] == pytest.approx(tuned.epsilon)
    text = (tmp_path / "tuned" / "tuned.toml").read_text()
    assert tomllib.loads(text) == {"federation": {"lr": 0.2, "batch_size": 6}}
    assert f"epsilon {tuned.epsilon:.4g}" in text
    assert json.loads((tmp_path / "tuned" / "tuning.json").read_text())["epsilon"] == tuned.epsilon
    with pytest.raises(ConfigError, match="exists"):
        tune(configured, Search(TRIES), tmp_path / "tuned", lambda event: None)


def test_a_search_whose_noise_falls_short_is_stopped_by_the_ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(private_tuning, "solve", lambda before, plans, target: 1.2 if not before else 0.6)
    with pytest.raises(FedPeftError, match="PrivacyError"):
        tune(configured, Search(TRIES[:1], SHARE, 2), tmp_path / "tuned", lambda event: None)


def test_the_noise_is_the_smallest_that_holds_all_of_it():
    plans = [private_tuning._plan(configured(settings)) for settings in TRIES]
    noise = solve([], plans, 2.0)
    before = [plan.with_noise(noise) for plan in plans]
    last = solve(before, plans[:1], 3.0)
    joint = private_tuning.epsilon([p.event() for p in (*before, plans[0].with_noise(last))], 1e-5)
    assert 0.99 * 3.0 < joint <= 3.0
    with pytest.raises(PrivacyError, match="cannot be reached"):
        solve(before, plans[:1], 1.9)


def test_all_combinations_or_a_public_draw_of_them():
    grid = candidates(("federation.lr=1,2", "privacy.clip = .5 , 1"), 0, 0)
    assert grid == tuple(
        (f"federation.lr={lr}", f"privacy.clip={clip}") for lr in ("1", "2") for clip in (".5", "1")
    )
    drawn = candidates(("federation.lr=1,2", "privacy.clip=.5,1"), 3, 7)
    assert len(set(drawn)) == 3 and set(drawn) < set(
        candidates(("federation.lr=1,2", "privacy.clip=.5,1"), 0, 0)
    )
    assert drawn == candidates(("federation.lr=1,2", "privacy.clip=.5,1"), 3, 7)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("federation.lr", "must be key=value"),
        ("federation.lr=1,", "must be key=value"),
        ("privacy.delta=1e-5,1e-3", "may not be tried"),
        ("privacy.noise_multiplier=1,2", "may not be tried"),
        ("data.samples=24,48", "may not be tried"),
    ],
)
def test_what_would_change_the_promise_is_not_tried(text, cause):
    with pytest.raises(ConfigError, match=cause):
        candidates((text,), 0, 0)


DISTRIBUTED = (
    "privacy.trust=distributed",
    "federation.local_steps=1",
    "federation.optimiser=sgd",
    "exchange.up.error_feedback=false",
    "exchange.secure.enabled=true",
    "exchange.secure.bits=16",
    "federation.nodes=3",
)


@pytest.mark.parametrize(
    ("settings", "score", "cause"),
    [
        (SMALL[:-3], "released", "needs privacy.unit"),
        ((*SMALL, *DISTRIBUTED), "released", "privacy.trust = 'local'"),
        ((*SMALL, "privacy.noise=discrete"), "released", "Gaussian noise alone"),
        ((*SMALL, "privacy.randomness=seeded"), "released", "a seed protects nothing"),
        ((*SMALL, "data.source=elsewhere.csv", "privacy.public_records=24"), "public", "without data.test"),
    ],
)
def test_what_no_search_covers_is_refused_before_anything_runs(tmp_path, settings, score, cause):
    search = Search(TRIES, score=score)
    with pytest.raises(FedPeftError, match=cause):
        tune(partial(configured, settings=settings), search, tmp_path / "tuned", lambda event: None)
    assert not (tmp_path / "tuned").exists()


def test_a_search_needs_trials_rounds_and_a_share():
    for search in ((), 0.3, 2), (TRIES, 1.0, 2), (TRIES, 0.3, 0):
        with pytest.raises(ConfigError, match="needed are"):
            Search(*search)


def test_a_trial_is_judged_by_the_later_half_of_its_noisy_losses(tmp_path):
    store = RunStore(tmp_path)
    for number, loss in enumerate((9.0, 4.0, 2.0), 1):
        store.append({"event": "training", "round": number, "loss": loss, "standard_error": 0.3})
    assert score_of(store, "released") == (3.0, pytest.approx(0.3 / 2**0.5))


def test_a_trial_releases_a_loss_if_it_is_judged_by_one():
    for score, share in (("released", 0.2), ("public", 0.0)):
        trial = private_tuning._trial(configured, Search(TRIES, score=score), 1)
        assert trial.privacy.loss_share == share and trial.federation.rounds == 2


def test_the_table_of_the_benchmark_has_means_and_the_worst():
    rows = [
        {
            "arm": "blindly",
            "seed": seed,
            "loss": 4.0 + seed,
            "accuracy": 0.5 + seed / 10,
            "noise": 1.0,
            "epsilon": 8,
        }
        for seed in (0, 1)
    ]
    (mean,) = benchmark.means(rows)
    assert (mean["loss"], mean["worst"], mean["seeds"]) == (4.5, 0.5, [0, 1])
    benchmark.show({"means": [mean], "machine": "here"})
