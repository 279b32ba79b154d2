"""Plain words for readers who are no engineers: stages, adversaries, steps of the exchange."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft_attacks.views import Role

STAGES: Mapping[str, str] = {
    "gradient": "first gradient, before any step",
    "update": "change after all local steps",
    "clip": "shortened to the agreed length",
    "add_residual": "with error feedback: what earlier rounds did not send",
    "sparsify": "only the largest values kept",
    "ternarise": "each value only plus, minus or nothing",
    "stochastic_ternarise": "each value drawn as plus, minus or nothing",
    "quantise": "rounded to what the envelope carries",
    "choose": "rounded in the way that keeps most of the update per bit",
    "keep_residual": "error feedback stored: what was not sent stays in the node",
    "envelope": "decoded from the bytes that leave",
    "aggregate": "mean of all nodes",
    "released": "the finished adapter",
}
"""What stages are; other stages carry the name of their transform only."""

WHO: Mapping[Role, str] = {
    "insider": "Someone inside the organisation, or on its machine, who reads the update before the later "
    "steps of the exchange plan. Nothing has left the organisation at this point; the figures show what the "
    "later steps take away.",
    "coordinator": "Whoever runs the coordinator, keeps to the rules and is curious. It opens each "
    "organisation's envelope and knows the base, the form of the adapter and the state of the round.",
    "malicious-coordinator": "A coordinator that breaks the rules: it chooses the base or the starting "
    "adapter so that updates give more away, and opens each envelope.",
    "peer": "Another organisation of the federation. It gets the mean of all updates each round, not those "
    "of a single organisation.",
    "outsider": "Anyone who is given the finished adapter, and has the base: a customer, or the public.",
}
"""Adversaries in plain words."""

KINDS: Mapping[str, str] = {
    "inversion": "Rebuilding training text from an update",
    "memorisation": "Drawing training text out of the finished adapter",
    "membership": "Telling whether a record was part of the training",
    "property": "Telling the labels of records, and how often each occurs",
}
"""Kinds of attack as headings."""

HARMS: Mapping[str, str] = {
    "inversion": "Words, names or whole sentences of records become readable for whoever sees the update.",
    "memorisation": "Whoever holds the adapter can make it write out a number, a name or a diagnosis.",
    "membership": "Whoever holds the adapter, or sees an update, can tell that a person is in the data; in "
    "the data of a clinic that alone gives an illness away.",
    "property": "Whoever sees an update can tell how many of an organisation's records have a label, such as "
    "a diagnosis, or which one a person has whose text it knows.",
}
"""What success of a kind of attack means for the people in the data."""

PLACES: Mapping[str, str] = {
    "envelope": "one organisation's envelope",
    "aggregate": "the mean of all organisations",
    "released": "the finished adapter",
}
"""What leaves an organisation, as it stands in a sentence; other stages carry their own name."""

STEPS: Mapping[str, str] = {
    "input:": "What enters has already been noised inside the organisation (DP-SGD).",
    "AddResidual": "Error feedback: what earlier rounds did not send is added.",
    "Clip": "The update is shortened to an agreed length, so that no organisation weighs too much.",
    "Sparsify": "Only the largest values are kept, the stated share of them.",
    "Ternarise": "Each value becomes plus, minus or nothing; one size per tensor is sent.",
    "StochasticTernarise": "Each value is drawn as plus, minus or nothing, right on average.",
    "Quantise": "Values are rounded to what the envelope can carry.",
    "Choose": "The rounding that keeps most of the update per bit is chosen for this message.",
    "KeepResidual": "Error feedback: what was not sent stays in the organisation for later rounds.",
    "codec:": "The result is packed, checksummed and signed.",
}
"""Steps of an exchange plan, by the first word of their line."""


def step_in_words(line: str) -> str:
    """What a line of an exchange plan means; empty for a step without an explanation."""
    return STEPS.get(line.split("(")[0].split(" ")[0], "")


def role_in_words(role: str) -> str:
    """A role as it stands in a sentence."""
    return role.replace("-", " ")
