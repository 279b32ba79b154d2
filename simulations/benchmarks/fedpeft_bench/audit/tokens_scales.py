"""What can be tried on (IA)³, whose gradient has no rows that combine token inputs.

A scale l of y = l * (W x) has the gradient dL/dl_i = sum_t g_ti (W x_t)_i: one number per output, in which
the unknown factor g differs from output to output, so that no two numbers share their coefficients and
neither span check nor pursuit applies. What is left is second order: where many tokens have large (W x)_i
the number tends to be large. Two attacks use that: the correlation of absolute values, token by token, and
the token variances that explain the squares best under a Gaussian model (multiplicative updates of the
Itakura-Saito divergence; Févotte, Bertin and Durrieu, Neural Computation 21(3), 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft_attacks.views import Guess, View

_ITERATIONS = 100
_TINY = 1e-12

Kind = Literal["correlation", "variances"]


def scale_attack(views: Sequence[View], model: Any, kind: Kind) -> Guess:
    """Rank all tokens by what the scales of the first layer's output say of them.

    Args:
        views: one or more rounds.
        model: the model with the adapter; its own weights give the outputs of each token.
        kind: which of the two attacks.
    """
    known = views[-1].knowledge
    atoms, squares = _first_layer(views, model)
    scores = (
        _correlation(atoms, squares) if kind == "correlation" else _variances(atoms, squares, known.prior)
    )
    ranking = [int(token) for token in np.argsort(-scores, kind="stable") if int(token) not in known.special]
    return Guess(ranking, 0, kind)


def _first_layer(views: Sequence[View], model: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared outputs per token, ``(tokens, outputs)``, and mean squared gradients, ``(outputs,)``.

    Each module is brought to mean one, as their gradients differ in size.
    """
    known = views[-1].knowledge
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    tensors = [view.layout.split(view.values) for view in views]
    atoms: list[NDArray[np.float64]] = []
    squares: list[NDArray[np.float64]] = []
    for name in sorted(known.readers):
        gradient = np.mean(
            [parts[f"{name}.ia3_l"].ravel().astype(np.float64) ** 2 for parts in tensors], axis=0
        )
        weight = modules[name].get_base_layer().weight.detach().float().numpy().astype(np.float64)
        outputs = (np.asarray(known.inputs, np.float64) @ weight.T) ** 2
        atoms.append(outputs / outputs.mean())
        squares.append(gradient / max(float(gradient.mean()), _TINY))
    return np.concatenate(atoms, axis=1), np.concatenate(squares)


def _correlation(atoms: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of the logarithms over outputs, after the mean token is taken off; ``(tokens,)``."""
    logs = np.log(atoms + _TINY)
    logs = logs - logs.mean(axis=0)
    logs = logs - logs.mean(axis=1, keepdims=True)
    wanted = np.log(squares + _TINY)
    wanted = wanted - wanted.mean()
    return logs @ wanted / np.maximum(np.linalg.norm(logs, axis=1), _TINY)


def _variances(
    atoms: NDArray[np.float64], squares: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    variances = prior + _TINY
    for _ in range(_ITERATIONS):
        model = variances @ atoms + _TINY
        variances = variances * np.sqrt((atoms @ (squares / model**2)) / (atoms @ (1.0 / model)))
    return variances
