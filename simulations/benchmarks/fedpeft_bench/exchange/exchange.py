"""Our envelopes and the codecs of others on the same tensors: bytes, rates and errors.

Everything of ours is a whole authenticated envelope: header, counts, scales, payload and Ed25519 signature.
Encoding is timed from the float32 vector (choice of values, rounding, coding, signing) and, for coding and
signing, alone; decoding starts with the signature and ends with a float32 vector. All times are processor
time of one core; rates are megabytes of float32 per second, whatever the codec leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from fedpeft.config.models import DirectionConfig
from fedpeft.errors import RunError
from fedpeft.exchange import (
    ExchangePlan,
    FloatVector,
    Layout,
    Update,
    codec_of,
    open_envelope,
    plan_from_config,
    seal,
)
from fedpeft.plugins import CODECS
from fedpeft_bench.exchange.peers import Peer, compeft_formula_bits, sparse_peers
from fedpeft_bench.exchange.peers_dense import dense_peers
from fedpeft_bench.exchange.tensors import Vector
from fedpeft_bench.harness.sealing import SIGNER, VERIFIER, context
from fedpeft_bench.harness.timing import best

Row = dict[str, Any]

DENSITY = 0.05
"""Where all codecs are compared; those that keep all values are compared with sparse ones of this density."""
DENSITIES = (0.005, 0.01, 0.03, 0.05, 0.10, 0.20, 0.25, 0.38, 0.50, 0.80, 1.00)
PATIENCE = {"OpenFL STC": 0.10}
"""Density above which a peer is left out of the sweep: gzip at level 9 then takes up to ten seconds a run."""
MOST_LEVELS = 16
"""Tensors with more distinct values have no bound worth comparing with."""


@dataclass(frozen=True)
class Ours:
    """One of our codecs.

    Attributes:
        label: name in tables and pictures.
        settings: of `fedpeft.config.models.DirectionConfig`.
        sparse: whether it has a density.
    """

    label: str
    settings: dict[str, Any] = field(hash=False)
    sparse: bool = False

    def plan(self, density: float) -> ExchangePlan:
        """The exchange plan of one message, without error feedback."""
        settings = self.settings | {"error_feedback": False} | ({"density": density} if self.sparse else {})
        return plan_from_config(DirectionConfig.model_validate(settings), private=False).at(context())


TERNARY = Ours("fedpeft ternary", {"codec": "ternary"}, sparse=True)
OURS = (
    TERNARY,
    Ours("fedpeft dead-zone", {"codec": "dead-zone"}, sparse=True),
    Ours("fedpeft stochastic ternary", {"codec": "stochastic-ternary"}, sparse=True),
    Ours("fedpeft masked sign", {"codec": "masked-sign"}, sparse=True),
    Ours("fedpeft auto", {"codec": "auto"}, sparse=True),
    Ours("fedpeft sign", {"codec": "sign"}),
    Ours("fedpeft dithered, 2 bits", {"codec": "dithered-2", "density": 1.0}),
    Ours("fedpeft dithered, 4 bits", {"codec": "dithered-4", "density": 1.0}),
    Ours("fedpeft int8", {"codec": "int8"}),
    Ours("fedpeft bf16", {"codec": "dense-bf16"}),
)
"""Every codec of ours; a further one is a line here."""
SPARSE = tuple(ours for ours in OURS if ours.sparse)


def measure(
    vector: Vector, swept: Iterable[Ours] = (TERNARY,), densities: Sequence[float] = DENSITIES
) -> dict[str, Any]:
    """All codecs on one vector at 5 %, and the peers and some of ours over densities.

    Returns:
        ``name``, ``parameters``, ``tensors``, ``floors`` (MB/s of numpy's own passes) and ``rows``; a row has
        ``who`` (ours, peer, formula), ``codec``, ``density``, ``bytes``, ``bits`` per parameter, ``excess``
        over the per-tensor Shannon bound (`symbol_bits`; None where there is none), ``against_ours`` and
        ``against_formula`` (bytes over those of our ternary and of ComPEFT's formula at the same density),
        ``encode``, ``seal`` and ``decode`` in MB/s, ``error``, the L2 norm of what is lost over that of
        the vector, ``chosen`` (what auto has taken) and ``note``.
    """
    rows = list(_rows(vector, tuple(swept), sorted({DENSITY, *densities})))
    _compare(rows, vector.layout.size)
    return {
        "name": vector.name,
        "parameters": vector.layout.size,
        "tensors": len(vector.layout.names),
        "floors": floors(vector),
        "rows": rows,
    }


def floors(vector: Vector) -> dict[str, float]:
    """MB/s of passes that numpy itself needs: the exact threshold at 5 %, and a copy."""
    place = vector.values.size - round(DENSITY * vector.values.size)
    target = np.empty_like(vector.values)
    _, threshold = best(lambda: np.partition(np.abs(vector.values), place))
    _, copy = best(lambda: np.copyto(target, vector.values))
    return {"threshold": _rate(vector, threshold), "copy": _rate(vector, copy)}


def symbol_bits(values: FloatVector, layout: Layout) -> float | None:
    """Shannon's bound in bits: the empirical entropy of each tensor's values as independent draws.

    For ternary values it is `fedpeft.exchange.entropy_bits`. None where a tensor has more than 16 values.
    """
    total = 0.0
    for start, end in pairwise(layout.offsets):
        part = values[start:end]
        if np.unique(part[:4096]).size > MOST_LEVELS:
            return None
        marked = part[part != 0]
        symbols, counts = np.unique(marked, return_counts=True)
        if symbols.size >= MOST_LEVELS:
            return None
        counts = np.append(counts, part.size - marked.size)
        counts = counts[counts > 0]
        total -= float((counts * np.log2(counts / part.size)).sum())
    return total


def sealed_bytes(ours: Ours, vector: Vector, density: float) -> int:
    """Bytes of one of our envelopes."""
    plan = ours.plan(density)
    final, _ = plan.run(Update(vector.layout, vector.values, 1, 1), {})
    return len(seal(final, plan, context(), SIGNER))


def _rows(vector: Vector, swept: tuple[Ours, ...], densities: Sequence[float]) -> Iterator[Row]:
    for density in densities:
        compared = density == DENSITY
        for ours in OURS if compared else swept:
            yield _ours(ours, vector, density)
        for peer in (*sparse_peers(density), *(dense_peers() if compared else ())):
            if compared or density <= PATIENCE.get(peer.label, 1):
                yield _peer(peer, vector)
        size = compeft_formula_bits(vector.layout.size, density) / 8
        yield _row("formula", "ComPEFT formula", density, size, vector)


def _ours(ours: Ours, vector: Vector, density: float) -> Row:
    plan, update = ours.plan(density), Update(vector.layout, vector.values, 1, 1)
    final, passed = best(lambda: plan.run(update, {})[0])
    envelope, sealed = best(lambda: seal(final, plan, context(), SIGNER))
    opened, took = best(
        lambda: open_envelope(envelope, vector.layout, plan.codec, context(), VERIFIER).dense()
    )
    if not np.array_equal(opened, final.values):
        raise RunError(f"{ours.label}: the decoded values are not the ones that were sealed")
    row = _row("ours", ours.label, density if ours.sparse else None, len(envelope), vector)
    chosen = codec_of(envelope, plan.codec)
    codec = CODECS[chosen]
    # where both ends know the support, only signs are to be told
    agreed = codec.same_values and not codec.sends_all and not codec.rounds_at_random
    bound = float(np.count_nonzero(opened)) if agreed else symbol_bits(opened, vector.layout)
    rates = {"encode": passed + sealed, "seal": sealed, "decode": took}
    row |= _quality(vector, opened, bound, len(envelope)) | _rates(vector, rates)
    return row | ({"chosen": chosen} if len(plan.codec.writers) > 1 else {})


def _peer(peer: Peer, vector: Vector) -> Row:
    layout, head = vector.layout, Layout(vector.layout.names[:1], vector.layout.shapes[:1])
    try:  # once without a clock: what is imported lazily must not count
        peer.decode(peer.encode(vector.values[: head.size], head), head)
    except ModuleNotFoundError as error:
        return _row("peer", peer.label, peer.density, None, vector) | {"note": f"{error.name} not installed"}
    data, encoding = best(lambda: peer.encode(vector.values, layout))
    decoded, decoding = best(lambda: peer.decode(data, layout))
    row = _row("peer", peer.label, peer.density, len(data), vector)
    rates = {"encode": encoding, "decode": decoding}
    return row | _quality(vector, decoded, symbol_bits(decoded, layout), len(data)) | _rates(vector, rates)


def _row(who: str, codec: str, density: float | None, size: float | None, vector: Vector) -> Row:
    bits = None if size is None else 8 * size / vector.layout.size
    blank = dict.fromkeys(("excess", "encode", "seal", "decode", "error", "chosen", "note"))
    return {"who": who, "codec": codec, "density": density, "bytes": size, "bits": bits, **blank}


def _quality(vector: Vector, decoded: FloatVector, bound: float | None, size: int) -> Row:
    error = float(np.linalg.norm(vector.values - decoded) / np.linalg.norm(vector.values))
    return {"error": error, "excess": 8 * size / bound - 1 if bound else None}


def _compare(rows: list[Row], size: int) -> None:
    """Add what only a row's neighbours tell: ratios of bytes, and the quality of ComPEFT's formula."""
    ours = {row["density"]: row for row in rows if row["codec"] == TERNARY.label}
    errors = {row["density"]: row["error"] for row in rows if row["codec"] == "ComPEFT masks, alpha = 1"}
    for row in rows:
        density, known = row["density"] or DENSITY, row["bytes"] is not None
        formula = compeft_formula_bits(size, density) / 8
        row["against_ours"] = row["bytes"] / ours[density]["bytes"] if known else None
        row["against_formula"] = row["bytes"] / formula if known else None
        if row["who"] == "formula":
            bound = ours[density]["bytes"] / (1 + ours[density]["excess"])
            row |= {"excess": row["bytes"] / bound - 1, "error": errors[density]}


def _rates(vector: Vector, seconds: dict[str, float]) -> Row:
    return {name: _rate(vector, took) for name, took in seconds.items()}


def _rate(vector: Vector, seconds: float) -> float:
    return vector.nbytes / seconds / 1e6
