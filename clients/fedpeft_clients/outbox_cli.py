"""``fedpeft node outbox``: what left, whether its log was tampered with, and a copy for others to check."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table
from fedpeft.errors import ConfigError, RunError
from fedpeft_clients.ledger_cli import public_key

if TYPE_CHECKING:
    from fedpeft.trust.signed_log import Head

HOME = typer.Option(None, "--home", help="The node's folder; default: the only one in $FEDPEFT_HOME/node.")
LAST = typer.Option(20, min=1, help="How many of the newest entries.")
FILE = typer.Argument(None, help="An export; default: the node's own log.")
KEY = typer.Option(None, help="The organisation's public key, 64 hexadecimal digits, from another source.")
KNOWN = typer.Option(None, help="SEQ:HASH of an entry that was noted before.")
OUT = typer.Option(..., "-o", "--out", help="File to write.")
COLUMNS = ("entry", "time (UTC)", "kind", "run", "round", "bytes", "epsilon", "audit", "to")


def register(app: typer.Typer) -> None:
    """Add the ``outbox`` commands."""
    group = typer.Typer(help="The log of what left.", no_args_is_help=True)
    group.command("list")(show)
    group.command()(verify)
    group.command()(export)
    app.add_typer(group, name="outbox")


def show(last: int = LAST, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """List what left, the newest last."""
    from fedpeft.trust.signed_log import entries_of
    from fedpeft_clients.organisation import open_organisation

    entries = entries_of(open_organisation(home).outbox.read())[-last:]
    emit({"entries": entries}, as_json, lambda: table("outbox", COLUMNS, map(row, entries)))


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """An entry as a line of a table."""
    moment = datetime.fromtimestamp(entry["time"], UTC).isoformat(timespec="seconds")
    kind = entry["kind"] if entry["kind"] != "error" else f"error {entry['reason']}"
    size = quantity(entry["bytes"]) if "bytes" in entry else "-"
    rest = (str(entry.get(name) if entry.get(name) is not None else "-") for name in ("epsilon", "audit"))
    number = str(entry.get("round") or "-")
    return (str(entry["seq"]), moment, kind, (entry["run"] or "-")[:12], number, size, *rest, entry["to"][:9])


def verify(
    file: Path | None = FILE,
    key: str | None = KEY,
    known: str | None = KNOWN,
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check every entry; exits with 8 if one was changed, removed, added or reordered, or the log was cut.

    A log that was put back as a whole to an earlier day holds: compare its head with one noted elsewhere.
    """
    public = public_key(key)
    lines, head, signed = _verified(file, public, home)
    _require_known(known, lines)
    facts = {"entries": head.seq, "head": str(head), "key": signed.hex(), "key_given": public is not None}
    source = "" if public or file is None else "; the key is the file's own word: give --key"
    emit(facts, as_json, lambda: typer.echo(f"intact: {head.seq} entries, head {head}{source}"))


def export(
    out: Path = OUT,
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the log as one file that `verify FILE --key KEY` checks on any machine."""
    from fedpeft.runstore import write_atomic
    from fedpeft_clients.organisation import open_organisation

    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; choose another --out")
    organisation = open_organisation(home)
    write_atomic(out, organisation.outbox.export(organisation.name))
    key = organisation.signer.public.hex()
    emit(
        {"file": str(out), "key": key},
        as_json,
        lambda: typer.echo(f"{out} written; check it with --key {key}"),
    )


def _verified(file: Path | None, key: bytes | None, home: Path | None) -> tuple[list[bytes], Head, bytes]:
    """The lines, their head and the key that signed them."""
    from fedpeft.trust.signed_log import lines_of
    from fedpeft_clients.organisation import OUTBOX, open_organisation

    if file is None:
        log = open_organisation(home).outbox
        signed = log.signer.public
        if key not in (None, signed):
            raise RunError(f"the log is signed by {signed.hex()}, not by the key given")
        return *log.verified(), signed
    if not file.is_file():
        raise ConfigError(f"there is no export at {str(file)!r}")
    data = file.read_bytes()
    header, head = OUTBOX.verify_export(data, key)
    return lines_of(data)[1:], head, bytes.fromhex(header["key"])


def _require_known(known: str | None, lines: list[bytes]) -> None:
    """Refuse a log that does not hold an entry which was noted before."""
    from fedpeft.trust.signed_log import entries_of

    if known is None:
        return
    number, _, digest = known.partition(":")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"--known {known!r} must be SEQ:HASH, as `verify` prints it")
    held = entries_of(lines[int(number) - 1 : int(number)])
    if not held or held[0]["hash"] != digest:
        raise RunError(f"the log does not hold the known entry {number}: it was put back or replaced")
