"""A ledger as JSON lines, which anybody can verify who has the public key; and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import store
from fedpeft.privacy.ledger.chain import Chain, Row

FORMAT = 2
"""Version of the header, and of what the hashes cover."""

SQLITE = b"SQLite format 3\0"


def export_text(chain: Chain) -> str:
    """One header line, then one line per entry; ``body`` is the exact text that the hash covers.

    The header counts the entries and names head and key, so that a torn file is noticed. It is not signed:
    compare the key with one from another source, and the head with one that was seen before.
    """
    header = _header(chain)
    lines = [row._asdict() | {"signature": row.signature and row.signature.hex()} for row in chain.rows]
    return "".join(json.dumps(line) + "\n" for line in [header, *lines])


def load_chain(path: Path) -> Chain:
    """The verified entries of a ledger or of an export; writes nothing.

    Raises:
        PrivacyError: there is no such file, it is neither, it is incomplete, or it was changed.
    """
    if not path.is_file():
        raise PrivacyError(
            f"there is no ledger at {str(path)!r}; give a node's home, its ledger or an export"
        )
    with store.explained(path), path.open("rb") as file:
        is_export = file.read(len(SQLITE)) != SQLITE
    if is_export:
        return _read(path)
    with store.session(path) as db:
        return Chain().extended(store.rows(db))


def _read(path: Path) -> Chain:
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [_row(line) for line in lines]
        version = header["fedpeft_ledger"]
    except (ValueError, TypeError, KeyError) as error:
        raise PrivacyError(
            f"{path} is neither a ledger nor its export ({type(error).__name__}); export it again"
        ) from None
    if version != FORMAT:
        raise PrivacyError(f"{path} is an export of format {version!r}, this version reads {FORMAT}")
    chain = Chain().extended(rows)
    if header != _header(chain):
        raise PrivacyError(
            f"{path} does not hold what its header says: it is torn or changed; export it again"
        )
    return chain


def _header(chain: Chain) -> dict[str, Any]:
    return {
        "fedpeft_ledger": FORMAT,
        "key": chain.key.hex() if chain.key else None,
        "entries": len(chain.rows),
        "head": {"seq": chain.head.seq, "hash": chain.head.hash},
    }


def _row(line: dict[str, Any]) -> Row:
    """A row of the right types.

    Raises:
        ValueError: something else.
        KeyError: a field is missing.
    """
    texts = [line[name] for name in ("body", "previous", "hash")]
    sound = set(line) == set(Row._fields) and type(line["seq"]) is int
    if not sound or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"line {line['seq']!r}")
    signature = line["signature"]
    body, previous, digest = texts
    return Row(line["seq"], body, previous, digest, None if signature is None else bytes.fromhex(signature))
