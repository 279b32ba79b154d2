"""The benchmark of bands: its gains, and tables that hold them."""

import pytest

from fedpeft_bench.privacy import bands


def test_gains_of_the_demos_setting_and_their_table():
    rows = list(bands.step_rows(bands.Setting(0.2, 24, 8.0)))
    assert [row["bands"] for row in rows] == [2, 3, 4]
    assert rows[1]["last"] == pytest.approx(0.842, abs=0.003)
    for name, row in (("steps", rows[0]), ("turns", bands.turn_row(3, 24, 8.0))):
        assert len(bands.cells(name, row)) == len(bands.COLUMNS[name])


def test_whole_groups_gain_as_much_over_the_same_turns_at_every_epsilon():
    gains = [bands.turn_row(3, 24, epsilon)["over_turns"] for epsilon in (8.0, 2.0)]
    assert gains[0] == pytest.approx(gains[1]) == pytest.approx(0.643, abs=0.001)


def test_the_table_of_coefficients_has_a_column_for_a_peer_that_may_be_away(monkeypatch):
    monkeypatch.setattr(bands, "_peer_version", lambda: None)
    row = bands._coefficients(24, 3)
    assert row["peer"] is None and row["optimised"] < row["square_root"]
    assert len(bands.cells("coefficients", row)) == len(bands.COLUMNS["coefficients"])
