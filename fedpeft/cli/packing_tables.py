"""What ``fedpeft adapter`` prints about packed adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedpeft.cli.output import quantity, table
from fedpeft.terminal import printable

if TYPE_CHECKING:
    from fedpeft.packing.diff import Difference
    from fedpeft.packing.library import Library
    from fedpeft.packing.pack import PackInfo
    from fedpeft.packing.search import Point


def plain(text: object) -> str:
    """Text of a foreign file as a table may show it: one line, not endless."""
    shown = printable(text)
    return shown if len(shown) <= 200 else shown[:199] + "…"


def show_info(facts: PackInfo) -> None:
    """Print what a packed adapter holds."""
    rows: list[tuple[str, str]] = [
        ("method", plain(facts.peft_type)),
        ("base", plain(facts.base_model)),
        ("weights", f"{facts.values} values in {facts.tensors} tensors, {facts.dtype}"),
        ("file", f"{quantity(facts.bytes_total)} (header {quantity(facts.bytes_header)})"),
        ("weights file", quantity(facts.bytes_source)),
        ("ratio", f"{facts.ratio:.1f}x"),
    ]
    if facts.claim is not None:
        claim = facts.claim
        rows.append(
            (
                "held-out loss, as the packer claims",
                f"{claim.loss:.4f} -> {claim.packed_loss:.4f} ({claim.change:+.2%}), {claim.records} records",
            )
        )
    table("packed adapter", ("what", "value"), rows)
    table(
        "parts",
        ("codec", "setting", "tensors", "values", "not zero", "bytes", "bits per value", "L2 error"),
        [
            (
                part.codec,
                part.setting,
                part.tensors,
                part.values,
                f"{part.density:.1%}",
                part.bytes,
                f"{part.bits_per_value:.2f}",
                f"{part.error:.3f}",
            )
            for part in facts.parts
        ],
    )


def point_row(point: Point) -> tuple[str, ...]:
    """One row of the table of size against quality."""
    recipe = point.recipe
    if recipe.codec == "levels":
        words = f"levels, step {recipe.step:g}"
    elif recipe.alpha is None:
        words = f"ternary changes, density {recipe.density:.0%}"
    else:
        words = f"ComPEFT, density {recipe.density:.0%}, alpha {recipe.alpha:g}"
    measured = () if point.loss is None else (f"{point.loss:.4f}", f"{point.change:+.2%}")
    return (words, str(point.bytes), f"{point.ratio:.1f}x", f"{point.error:.3f}", *measured)


def show_points(points: Iterable[Point], evaluated: bool) -> None:
    """Print the table of size against quality."""
    columns = ["packed as", "bytes", "ratio", "L2 error", *(["held-out loss", "change"] if evaluated else [])]
    table("size against quality", columns, [point_row(point) for point in points])


def show_library(library: Library) -> None:
    """Print a library by base, and what could not be read."""
    for base, entries in library.by_base().items():
        table(
            f"adapters for {plain(base)}",
            ("adapter", "method", "coded as", "values", "size", "ratio", "loss (packer's claim)"),
            [
                (
                    plain(name),
                    plain(entry.method),
                    ", ".join(entry.codecs),
                    entry.values,
                    quantity(entry.bytes),
                    f"{entry.ratio:.1f}x",
                    "not measured" if entry.loss_change is None else f"{entry.loss_change:+.2%}",
                )
                for name, entry in entries.items()
            ],
        )
    if library.refused:
        rows = [(plain(refused.path.name), plain(refused.cause)) for refused in library.refused]
        table("not read", ("file", "why"), rows)


def library_json(library: Library) -> dict[str, Any]:
    """A library for machines."""
    adapters = {
        name: asdict(entry) | {"path": str(entry.path), "ratio": entry.ratio}
        for name, entry in library.items()
    }
    refused = [{"path": str(refused.path), "cause": refused.cause} for refused in library.refused]
    return {"adapters": adapters, "refused": refused}


def show_difference(differences: Difference, rows: int) -> None:
    """Print what two adapters differ in, the tensors that differ most first."""
    cosine = "n/a" if differences.total.cosine is None else f"{differences.total.cosine:.6f}"
    change = "n/a" if differences.weight_change is None else f"{differences.weight_change:.3%}"
    facts = [
        ("all values: L2 difference", f"{differences.total.relative:.3%}"),
        ("all values: cosine", cosine),
        ("values that differ", f"{differences.total.changed:.1%}"),
        ("weight change B A: difference", change),
        ("tensors of the first alone", str(len(differences.only_a))),
        ("tensors of the second alone", str(len(differences.only_b))),
    ]
    table("difference", ("what", "value"), facts)
    if differences.settings:
        pairs = [(plain(key), plain(a), plain(b)) for key, (a, b) in differences.settings.items()]
        table("settings that differ", ("setting", "first", "second"), pairs)
    far = sorted(differences.tensors.items(), key=lambda item: -item[1].relative)
    changed = [item for item in far if item[1].changed][:rows]
    if changed:
        cells = [
            (plain(name), f"{gap.relative:.3%}", "n/a" if gap.cosine is None else f"{gap.cosine:.4f}")
            for name, gap in changed
        ]
        table(f"tensors that differ most, {len(changed)} of {len(far)}", ("tensor", "L2", "cosine"), cells)
