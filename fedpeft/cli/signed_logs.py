"""The three commands of a signed log, for whoever keeps one: list, verify, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fedpeft.trust.signed_log import Entry, Head, SignedLog

HOME = typer.Option(None, "--home", help="The owner's folder; default: the only one in $FEDPEFT_HOME.")
LAST = typer.Option(20, min=1, help="Number of newest entries to show.")
FILE = typer.Argument(None, help="An export; default: the log of this machine.")
KEY = typer.Option(None, help="The owner's public key, 64 hexadecimal digits, from another source.")
KNOWN = typer.Option(None, help="SEQ:HASH of an entry that was noted before.")
OUT = typer.Option(..., "-o", "--out", help="File to write.")


@dataclass(frozen=True)
class LogCommands:
    """What the commands of one kind of log differ in.

    Attributes:
        kind: of its `LogFormat`.
        open: from ``--home`` to the owner's name and log.
        columns: of the table.
        row: an entry as a line of the table.
    """

    kind: str
    open: Callable[[Path | None], tuple[str, SignedLog]]
    columns: tuple[str, ...]
    row: Callable[[Entry], tuple[str, ...]]

    def register(self, app: typer.Typer, name: str, help: str) -> None:
        """Add the group of commands under a name."""
        group = typer.Typer(help=help, no_args_is_help=True)
        group.command("list")(self.show)
        group.command()(self.verify)
        group.command()(self.export)
        app.add_typer(group, name=name)

    def show(self, last: int = LAST, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
        """List the entries, the newest last."""
        from fedpeft.trust.signed_log import entries_of

        entries = entries_of(self.open(home)[1].read())[-last:]
        emit({"entries": entries}, as_json, lambda: table(self.kind, self.columns, map(self.row, entries)))

    def verify(
        self,
        file: Path | None = FILE,
        key: str | None = KEY,
        known: str | None = KNOWN,
        home: Path | None = HOME,
        as_json: bool = JSON_OPTION,
    ) -> None:
        """Check every entry; exits with 8 if one was changed, removed, added or moved, or the log was cut.

        A log that was put back as a whole to an earlier day holds: compare its head with one noted elsewhere.
        """
        public = public_key(key)
        lines, head, signed = self._verified(file, public, home)
        _require_known(known, lines)
        facts = {"entries": head.seq, "head": str(head), "key": signed.hex(), "key_given": public is not None}
        source = "" if public or file is None else "; the key comes from the file itself: give --key"
        emit(facts, as_json, lambda: typer.echo(f"intact: {head.seq} entries, head {head}{source}"))

    def export(self, out: Path = OUT, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
        """Write the log as one file that `verify FILE --key KEY` checks on any machine."""
        from fedpeft.runstore import write_atomic

        if out.exists():
            raise ConfigError(f"{str(out)!r} exists; choose another --out")
        name, log = self.open(home)
        write_atomic(out, log.export(name))
        key = log.signer.public.hex()
        emit(
            {"file": str(out), "key": key},
            as_json,
            lambda: typer.echo(f"{out} written; check it with --key {key}"),
        )

    def _verified(
        self, file: Path | None, key: bytes | None, home: Path | None
    ) -> tuple[list[bytes], Head, bytes]:
        """The lines, their head and the key that signed them."""
        from fedpeft.trust.signed_log import LogFormat, lines_of

        if file is None:
            log = self.open(home)[1]
            signed = log.signer.public
            if key not in (None, signed):
                raise RunError(f"the log is signed by {signed.hex()}, not by the key given")
            return *log.verified(), signed
        if not file.is_file():
            raise ConfigError(f"there is no export at {str(file)!r}")
        data = file.read_bytes()
        header, head = LogFormat(self.kind).verify_export(data, key)
        return lines_of(data)[1:], head, bytes.fromhex(header["key"])


def public_key(text: str | None) -> bytes | None:
    """The 32 bytes of ``--key``.

    Raises:
        ConfigError: the text is no key.
    """
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"--key {text!r} must be 64 hexadecimal digits")
    return key


def moment(entry: dict[str, Any]) -> str:
    """When an entry was written, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(entry["time"], UTC).isoformat(timespec="seconds")


def _require_known(known: str | None, lines: list[bytes]) -> None:
    """Refuse a log that does not hold an entry which was noted before."""
    from fedpeft.trust.signed_log import entries_of

    if known is None:
        return
    number, _, digest = known.partition(":")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"--known {known!r} must be SEQ:HASH, as `verify` prints it")
    entries = entries_of(lines[int(number) - 1 : int(number)])
    if not entries or entries[0]["hash"] != digest:
        raise RunError(f"the log does not hold the known entry {number}: it was put back or replaced")
