"""The privacy benchmark: accountants in order, and an audit that tells right noise from halved noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from fedpeft.privacy.accounting import Steps, epsilon
from fedpeft_attacks.dp_audit import mechanism
from fedpeft_attacks.dp_audit.gaussian import epsilon_of, separation
from fedpeft_bench.privacy import accountants

REPEATS = 40
FALSE_ALARM = 1e-6


def assert_in_order(row):
    """Never below the lower bound, within 1 % of it, and below all other accountants."""
    assert row["lower_bound"] <= row["fedpeft"] <= 1.01 * row["lower_bound"]
    assert row["fedpeft"] <= row["opacus_prv"] and row["fedpeft"] <= row["google_rdp"]
    assert row["fedpeft"] <= row["opacus_rdp"]


@pytest.mark.parametrize("setting", [accountants.SETTINGS[index] for index in (6, 7, 11)])
def test_epsilon_is_within_one_percent_of_the_lower_bound(setting):
    assert_in_order(accountants.accountants([setting], 1e-4)[0])


@pytest.mark.slow
def test_all_twelve_settings_are_in_order():
    rows = accountants.accountants()
    assert len(rows) == 12
    for row in rows:
        assert_in_order(row)
    surplus = [row["google_rdp"] / row["fedpeft"] for row in rows if row["rate"] < 0.1]
    assert min(surplus) > 1.08


def test_one_gaussian_release_has_the_exact_epsilon():
    for claimed in (0.5, 1.0, 4.0, 8.0):
        mu = separation(claimed, mechanism.DELTA)
        assert epsilon_of(mu, mechanism.DELTA) == pytest.approx(claimed, rel=1e-6)
        assert epsilon([Steps(1.0, 1 / mu, 1)], mechanism.DELTA) == pytest.approx(claimed, rel=1e-3)
    assert epsilon_of(-1.0, mechanism.DELTA) == 0.0


@pytest.mark.parametrize(("claimed", "repeats"), [(1.0, 25), (4.0, 4), (8.0, 4)])
def test_a_million_coordinates_show_nearly_the_whole_claim(claimed, repeats):
    runs = [mechanism.audit(claimed) for _ in range(repeats)]
    assert 0.97 * claimed <= np.mean([run.gaussian for run in runs]) <= 1.01 * claimed
    assert all(0.3 * claimed <= run.counting <= claimed for run in runs)


@pytest.mark.parametrize("claimed", [1.0, 4.0, 8.0])
def test_bounds_above_the_claim_are_as_rare_as_they_say(claimed):
    runs = [mechanism.audit(claimed, 20_000) for _ in range(REPEATS)]
    most = binom.isf(FALSE_ALARM, REPEATS, 1 - mechanism.CONFIDENCE)
    assert sum(run.gaussian > claimed for run in runs) <= most
    assert sum(run.counting > claimed for run in runs) <= most
    assert np.median([run.gaussian for run in runs]) < claimed


@pytest.mark.parametrize("claimed", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("scale", [0.5, 0.9])
def test_weak_noise_is_caught(claimed, scale):
    assert mechanism.audit(claimed, noise_scale=scale).gaussian > claimed


def test_the_tables_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(accountants, "SETTINGS", accountants.SETTINGS[7:8])
    monkeypatch.setattr(accountants, "VALUES", 10_000)
    facts = {
        "machine": "here",
        "accountants": accountants.accountants(accountants.SETTINGS, 1e-3),
        "noise": accountants.noise_speed(),
        "step_noise": accountants.step_noise(),
        "audits": accountants.audits((1.0,), repeats=1),
    }
    accountants.show(facts)
    printed = capsys.readouterr().out
    assert "Opacus PRV" in printed and "torch.normal" in printed and "Gaussian bound" in printed
