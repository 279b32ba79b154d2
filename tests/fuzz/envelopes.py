"""What the fuzzer puts to the parser of envelopes, and what must hold for every input.

An input is a byte that names the target (a codec and a layout) and the payload; from 128 on the byte is
followed by a whole body, header included. The signature is left out: it would keep every mutation away from
the parser. For each input:

* nothing but `EnvelopeError` is raised, and no warning is given;
* accepted bytes hold finite values and are the very bytes that these values are written in;
* decoding holds at most a constant times the layout in memory (sampled, because tracing is slow);
* decoding takes at most ten times the processor time of the slowest honest envelope of the target.
"""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from fedpeft.errors import EnvelopeError
from fedpeft.exchange import AnyOf, Codec, Context, Decoded, Layout, MaskedSign, Update, codec_named, codec_of
from fedpeft.exchange.codecs.dithered import Dithered2, Dithered4
from fedpeft.exchange.envelope import decode_body, encode_body
from fedpeft.exchange.support import PublicSupport

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

BYTES_PER_VALUE = 64
FIXED_BYTES = 1 << 16
SLOWER = 10
SAMPLED = 1000
"""Of so many inputs one is traced."""
WHOLE = 128
"""From this first byte on, what follows is a body and not a payload."""

DENSITIES = (0.0, 0.02, 0.1, 0.3, 0.36, 0.4, 0.5, 0.6, 0.7, 0.97, 1.0)
LAYOUTS = {
    "none": (),
    "one value": (1,),
    "short": (1, 2, 3, 4, 5, 6, 7, 8),
    "mixed": (90, 3, 1, 40),
    "many": (5, 9) * 15,
    "one tensor": (300,),
    "large": (6000, 2000),
}
DENSE = ("dense-fp32", "dense-bf16", "int8")
"""Codecs that are left out over the large layout: their payloads have one length, and that is long."""


class Finding(Exception):
    """An input for which something does not hold."""


@dataclass(frozen=True)
class Target:
    """A codec and a layout, honest bodies in it and the processor time of the slowest, in seconds."""

    name: str
    codec: Codec
    layout: Layout
    honest: tuple[bytes, ...]
    slowest: float

    @property
    def head(self) -> bytes:
        """The header that payloads get: of an honest body."""
        return self.honest[0][:4]


@dataclass
class Tally:
    """What was counted and measured so far."""

    accepted: dict[str, int] = field(default_factory=dict[str, int])
    refused: dict[str, int] = field(default_factory=dict[str, int])
    slowest: float = 0.0
    memory: float = 0.0

    @property
    def runs(self) -> int:
        """Number of inputs."""
        return sum(self.accepted.values()) + sum(self.refused.values())

    def lines(self) -> list[str]:
        """The summary, one line per codec and one for all."""
        names = sorted({*self.accepted, *self.refused})
        counts = {name: (self.accepted.get(name, 0), self.refused.get(name, 0)) for name in names}
        each = [f"{name:22} accepted {yes:9,}  refused {no:9,}" for name, (yes, no) in counts.items()]
        total = f"accepted {sum(self.accepted.values()):,}, refused {sum(self.refused.values()):,}"
        bounds = f"slowest {self.slowest:.2f} times the honest one, memory {self.memory:.2f} of its bound"
        return [*each, f"{self.runs:,} runs: {total}; {bounds}; no finding"]


def targets() -> list[Target]:
    """Every codec over every layout."""
    pairs = [(_layout(sizes), own) for sizes in LAYOUTS.values() for own in _codecs(_layout(sizes))]
    return [_target(name, codec, layout) for layout, (name, codec) in pairs]


def seeds(all_targets: list[Target]) -> list[bytes]:
    """Honest inputs to start from: payloads, and whole bodies where the header matters."""
    found: dict[bytes, None] = {}
    for index, target in enumerate(all_targets):
        for body in target.honest:
            if body[:4] == target.head:
                found[bytes([index]) + body[4:]] = None
            else:
                found[bytes([WHOLE + index]) + body] = None
        found[bytes([WHOLE + index]) + target.honest[0]] = None
    return list(found)


def check(data: bytes, all_targets: list[Target], tally: Tally) -> None:
    """Put one input to the parser.

    Raises:
        Finding: something does not hold.
    """
    if not data:
        return
    target = all_targets[data[0] % WHOLE % len(all_targets)]
    body = data[1:] if data[0] >= WHOLE else target.head + data[1:]
    start = time.process_time()
    decoded = _decoded(body, target)
    spent = time.process_time() - start
    counts = tally.refused if decoded is None else tally.accepted
    counts[target.name] = counts.get(target.name, 0) + 1
    if decoded is not None:
        _check_canonical(body, target, decoded)
    if spent > tally.slowest * target.slowest:
        tally.slowest = max(tally.slowest, _ratio(body, target))
    if tally.runs % SAMPLED == 1:
        tally.memory = max(tally.memory, _memory(body, target))


def mutations(start: list[bytes], rng: np.random.Generator) -> Iterator[bytes]:
    """Plain random mutations of the seeds, without end."""
    while True:
        data = bytearray(start[int(rng.integers(len(start)))])
        for _ in range(int(rng.integers(1, 4))):
            kind, place = int(rng.integers(5)), int(rng.integers(1, len(data) + 1))
            if kind < 2 and place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                data[place : place + 1] = bytes([int(rng.choice([0, 1, 127, 128, 255]))])
            elif kind == 3:
                del data[place : place + int(rng.integers(1, 5))]
            else:
                data[place : place + int(rng.integers(5))] = rng.bytes(int(rng.integers(1, 5)))
        yield bytes(data)


def _decoded(body: bytes, target: Target) -> Decoded | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return decode_body(body, target.layout, target.codec)
    except EnvelopeError:
        return None
    except Exception as error:
        raise Finding(f"{target.name}: {type(error).__name__}: {error}") from error


def _check_canonical(body: bytes, target: Target, decoded: Decoded) -> None:
    values = decoded.dense()
    if values.shape != (target.layout.size,) or not np.isfinite(values).all():
        raise Finding(f"{target.name}: accepted values that are not finite or too few")
    members = target.codec.members if isinstance(target.codec, AnyOf) else (target.codec,)
    named = next(codec for codec in members if codec.name == codec_of(body, target.codec))
    try:
        again = encode_body(Update(target.layout, values, round=1, steps=1), named)
    except Exception as error:
        raise Finding(f"{target.name}: accepted values that are not written: {error!r}") from error
    if again != body:
        raise Finding(f"{target.name}: accepted bytes that these values are not written in")


def _ratio(body: bytes, target: Target) -> float:
    """Processor time over that of the slowest honest body, measured until it is low or again and again."""
    ratio = _seconds(body, target) / target.slowest
    if ratio > SLOWER:
        honest = max(_seconds(own, target) for own in target.honest)
        ratio = min(ratio, _seconds(body, target, 50) / honest)
    if ratio > SLOWER:
        raise Finding(f"{target.name}: takes {ratio:.1f} times as long as the slowest honest envelope")
    return ratio


def _memory(body: bytes, target: Target) -> float:
    """Peak memory over its bound."""
    tracemalloc.start()
    try:
        with suppress(EnvelopeError):
            decode_body(body, target.layout, target.codec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = BYTES_PER_VALUE * target.layout.size + FIXED_BYTES
    if peak > bound:
        raise Finding(f"{target.name}: holds {peak:,} bytes, allowed are {bound:,}")
    return peak / bound


def _seconds(body: bytes, target: Target, times: int = 7) -> float:
    """Least processor time of several, the only one that says something about the input."""
    return min(_spent(lambda: _decoded(body, target)) for _ in range(times))


def _spent(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _layout(sizes: tuple[int, ...]) -> Layout:
    return Layout(tuple(f"t{index:02d}" for index in range(len(sizes))), tuple((size,) for size in sizes))


def _codecs(layout: Layout) -> list[tuple[str, Codec]]:
    context = Context(bytes(16), 1, "node", bytes(32), "up")
    numbers = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    masked = {
        f"masked-sign {source}": MaskedSign(PublicSupport(0.4, source)).at(context, Decoded(layout, numbers))
        for source in ("seed", "released")
    }
    dithered = {
        codec.name: codec(PublicSupport(density)).at(context)
        for codec, density in ((Dithered2, 1), (Dithered4, 0.4))
    }
    auto = AnyOf((CODECS["ternary"], CODECS["dead-zone"], masked["masked-sign seed"]))
    codecs = {**CODECS, **masked, **dithered, "auto": auto}
    return [own for own in codecs.items() if layout.size < 1000 or own[0] not in DENSE]


def _target(name: str, codec: Codec, layout: Layout) -> Target:
    members = codec.members if isinstance(codec, AnyOf) else (codec,)
    bodies = tuple(_body(member, layout, density) for density in DENSITIES for member in members)
    bare = Target(name, codec, layout, bodies, 1.0)
    return Target(name, codec, layout, bodies, max(_seconds(body, bare, 3) for body in bodies))


def _body(codec: Codec, layout: Layout, density: float) -> bytes:
    rng = np.random.default_rng(round(100 * density))
    values = rng.standard_t(2, layout.size) * (rng.random(layout.size) < density)
    fitted = codec.fit(values.astype(np.float32), layout)
    return encode_body(Update(layout, fitted, round=1, steps=1), codec)
