"""From a View to blocks: which rows of an update are combinations of known token inputs.

With y = W x + s B A x and g = dL/dy, each row of dL/dA = s (B'g)' X combines the inputs x of the batch, and
each row of dL/dB = s g' (X A') combines A x. MiSS is the second form: its A sums shards of the input. In the
first layer of a base without absolute positions x depends on the token alone, so the atoms are known; with
positions see `placed_recovery`; in later layers they are known approximately.
Source: Petrov et al., arXiv 2405.15586, sections 3 and 4.
"""

from __future__ import annotations

import numpy as np

from fedpeft_attacks.tokens.blocks import Block, Matrix
from fedpeft_attacks.views import UNDECLARED, NotApplicable, View


def observations(view: View) -> list[Block] | NotApplicable:
    """Blocks that show the batch's tokens; they share one token set."""
    seen, inputs = observed_rows(view), view.knowledge.inputs
    if isinstance(seen, NotApplicable):
        return seen
    return [
        Block(rows, inputs if projection is None else inputs @ projection.T.astype(inputs.dtype))
        for rows, projection in seen
    ]


def observed_rows(view: View) -> list[tuple[Matrix, Matrix | None]] | NotApplicable:
    """Rows of the modules that read tokens, and what their inputs were projected with; None: with nothing.

    Rows of inputs (LoRA's A) come first: they carry the whole input. Where they are absent or zero (a fresh
    adapter gives A no gradient) projected rows (of B) are read through the known projection.
    """
    known = view.knowledge
    if known.rows is None:
        return UNDECLARED
    places = [known.rows.place(name) for name in view.layout.names]
    if not any(places):
        return NotApplicable("no tensor of this adapter has rows that combine token inputs")
    tensors = view.layout.split(view.values)
    parts = zip(places, tensors.values(), strict=True)
    rows = [(*where, tensor) for where, tensor in parts if where is not None and where[0] in known.readers]
    if not rows:
        return NotApplicable("no module that reads tokens carries the adapter")
    direct = [tensor for _, part, tensor in rows if part == known.rows.inputs and tensor.any()]
    if direct:
        return [(np.concatenate(direct), None)]
    usable: list[tuple[Matrix, Matrix | None]] = [
        (tensor, known.projections[module])
        for module, part, tensor in rows
        if part == known.rows.projected and module in known.projections and tensor.any()
    ]
    return usable or NotApplicable("the first layer is zero in this update, or its projection is not known")
