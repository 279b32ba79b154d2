"""Settings of privacy and secure aggregation that contradict each other are refused, with what to change."""

from __future__ import annotations

import pytest

from fedpeft.config import build_config
from fedpeft.errors import ConfigError

NODE = {"unit": "node", "trust": "central", "noise_multiplier": 1.0}
NO_FEEDBACK = {"up": {"error_feedback": False}}
SECURE = {"secure": {"enabled": True}}
SUM = {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 32}}
DISTRIBUTED = {**NODE, "trust": "distributed"}
SUMMED = {
    "privacy": {"unit": "record", "trust": "distributed", "epsilon": 8.0},
    "federation": {"local_steps": 1, "optimiser": "sgd"},
    "exchange": SUM,
}
DELTA = {"down": {"codec": "dense-fp32"}}

PLAIN = {"local_steps": 4, "optimiser": "sgd", "momentum": 0.0}
BANDED = {"unit": "record", "epsilon": 8, "bands": 2}
REFUSED = [
    ({"privacy": {"epsilon": 8}}, "needs privacy.unit"),
    ({"privacy": {"unit": "record"}}, "exactly one of"),
    ({"privacy": {**NODE, "unit": "record"}}, "protects whole nodes"),
    ({"privacy": {"unit": "person", "epsilon": 8}}, "needs data.person"),
    (
        {
            "privacy": {"unit": "record", "epsilon": 8},
            "adapter": {"method": "ia3"},
            "run": {"engine": "opacus"},
        },
        r"run\.engine = 'opacus' reads gradients of plain layers, and this adapter trains others",
    ),
    ({"privacy": {"unit": "record", "epsilon": 8, "sampling": "record"}}, r"set privacy\.unit = 'person'"),
    ({"privacy": {**NODE, "noise": "discrete"}, "exchange": NO_FEEDBACK}, r"leave privacy\.noise out"),
    ({"privacy": {**NODE, "trust": "local"}, "exchange": NO_FEEDBACK}, "hides a node by itself"),
    ({"privacy": NODE}, "residual would carry"),
    (
        {"privacy": NODE, "exchange": {**NO_FEEDBACK, **DELTA}, "adapter": {"aggregation": "reproject"}},
        "needs a plain mean",
    ),
    (
        {"privacy": NODE, "exchange": NO_FEEDBACK, "federation": {"participation": 0.5}},
        "everybody knows whom a known seed draws",
    ),
    (
        {"privacy": BANDED, "federation": {**PLAIN, "local_steps": 5}},
        r"must divide federation\.local_steps = 5",
    ),
    ({"privacy": {**BANDED, "noise": "discrete"}, "federation": PLAIN}, "is for continuous noise"),
    ({"privacy": {**BANDED, "loss_share": 0.2}, "federation": PLAIN}, r"set privacy\.loss_share = 0"),
    ({"privacy": BANDED, "federation": {**PLAIN, "momentum": 0.5}}, "and momentum or AdamW weigh them apart"),
    (
        {"privacy": BANDED, "federation": {**PLAIN, "optimiser": "adamw"}},
        "set federation.optimiser = 'sgd' and",
    ),
    (
        {**SUMMED, "privacy": {**SUMMED["privacy"], "bands": 2}},
        "a node that drops out takes its rows with it",
    ),
    ({"privacy": {**NODE, "bands": 2}, "exchange": NO_FEEDBACK}, "needs federation.selection = 'cyclic'"),
    (
        {
            "privacy": {**NODE, "bands": 3},
            "exchange": NO_FEEDBACK,
            "federation": {"selection": "cyclic", "participation": 0.5},
        },
        "takes part every 2 rounds",
    ),
    ({"privacy": DISTRIBUTED, "exchange": NO_FEEDBACK}, "inside secure aggregation"),
    ({"privacy": {**DISTRIBUTED, "adaptive_clip": True}, "exchange": SUM}, "fixed clip"),
    ({"privacy": NODE, "exchange": {**NO_FEEDBACK, **SECURE}}, "has to clip"),
    ({**SUMMED, "federation": {"optimiser": "sgd", "local_steps": 2}}, "set federation.local_steps = 1"),
    ({**SUMMED, "federation": {"local_steps": 1}}, "and federation.optimiser = 'sgd'"),
    ({**SUMMED, "exchange": {"secure": SUM["secure"]}}, "gradients, which leave no residual"),
    ({**SUMMED, "exchange": NO_FEEDBACK}, "inside secure aggregation"),
    ({"exchange": SECURE, "federation": {"nodes": 128}}, "works for 2 to 127 nodes"),
    ({"exchange": SECURE, "federation": {"nodes": 2}}, "a sum needs 3 nodes"),
    ({"exchange": {**SECURE, "up": {"codec": "dense-fp32"}}}, "set exchange.up.codec = 'ternary' or 'sign'"),
    (
        {"exchange": SECURE, "adapter": {"aggregation": "naive"}},
        "set adapter.aggregation = 'frozen_a'",
    ),
    ({"exchange": {"secure": {"enabled": True, "bits": 32}}}, "ternary sums fit 8 bits"),
    ({"exchange": SECURE, "federation": {"selection": "cyclic"}}, "needs a roster that all nodes know"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_contradiction_gives_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": {"unit": "record", "epsilon": 8}},
        {"privacy": {"unit": "person", "epsilon": 8}, "data": {"person": "patient"}},
        {"privacy": NODE, "exchange": NO_FEEDBACK},
        {
            "privacy": {**NODE, "bands": 2},
            "exchange": NO_FEEDBACK,
            "federation": {"selection": "cyclic", "participation": 0.5},
        },
        {"privacy": BANDED, "federation": PLAIN},
        {"privacy": DISTRIBUTED, "exchange": SUM},
        SUMMED,
        {"exchange": SECURE},
        {"privacy": {"unit": "record", "epsilon": 8}, "exchange": SECURE},
    ],
)
def test_what_belongs_together_is_accepted(settings):
    assert build_config(settings).privacy.unit == settings.get("privacy", {}).get("unit", "none")


RECORDS = {"unit": "record", "epsilon": 8.0}


@pytest.mark.parametrize(
    ("privacy", "most"),
    [
        ({**RECORDS, "public_records": 5000}, 2e-4),
        ({**RECORDS, "public_records": 5000, "sampling_probability": 0.5}, 2e-4),
        ({**RECORDS, "sampling_probability": 0.01}, 1 / 1600),
        (RECORDS, 1 / 200),
        ({**NODE}, 1 / 4),
    ],
)
def test_a_delta_of_one_in_the_units_is_refused(privacy, most):
    """It would allow to publish one record of them all."""
    sections = {"exchange": NO_FEEDBACK, "federation": {"nodes": 4, "batch_size": 16}}
    build_config({"privacy": {**privacy, "delta": most}, **sections})
    with pytest.raises(
        ConfigError, match=r"privacy\.delta = .* is above 1 / .*set privacy\.delta to less than"
    ):
        build_config({"privacy": {**privacy, "delta": 1.01 * most}, **sections})


def test_a_delta_of_one_in_the_records_of_all_is_refused_where_they_share_a_sum():
    def at(delta):
        return build_config({**SUMMED, "privacy": {**SUMMED["privacy"], "delta": delta}})

    at(1 / 800)  # four nodes of 200 records
    with pytest.raises(ConfigError, match="is above 1 / 800, one in the number of records"):
        at(1.01 / 800)
