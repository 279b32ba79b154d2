"""An attack: it guesses what the base writes most and does not look at the update."""

import numpy as np

from fedpeft_attacks import Attack, Guess


def guess(view, seconds):
    """Tokens by how often the base writes them."""
    order = np.argsort(-view.knowledge.prior, kind="stable").tolist()
    return Guess([token for token in order if token not in view.knowledge.special], 0, "prior alone")


PRIOR = Attack("prior", frozenset(), guess, "Names the tokens that the base writes most often.", trials=1)
