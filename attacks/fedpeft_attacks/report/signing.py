"""Signed reports: who made a report, and that no byte of it has changed since.

``report.sig`` lies beside the report. It names the signer's public key and the SHA-256 of each file of the
report, and holds an Ed25519 signature (RFC 8032) over exactly that, under a prefix of its own, so that it can
stand for nothing else that the same key signs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import AuditError
from fedpeft.runstore import write_json
from fedpeft.trust import Signer, Verifier
from fedpeft_attacks.results.findings import Signature

SIGNATURE_FILE = "report.sig"
FILES = ("report.json", "report.html", "model-card.md")
"""What a report consists of, and what is signed."""

_KEYS = ("signing.key", "coordinator.key")
_PREFIX = b"fedpeft-report-1\0"


def signer_in(home: Path) -> Signer:
    """The key of a node's or a coordinator's folder; none is ever made here.

    Raises:
        AuditError: there is none.
        ExchangeError: the file holds something else.
    """
    for path in (home / name for name in _KEYS):
        if path.is_file():
            return Signer(path.read_bytes())
    raise AuditError(
        f"{str(home)!r} holds no key to sign with ({' or '.join(_KEYS)}); give the home of a node or the "
        "folder of a coordinator, not that of a simulated node"
    )


def signature_of(home: Path) -> Signature:
    """What a report states about its signer.

    Raises:
        AuditError: the folder holds no key.
    """
    return Signature(signer=home.resolve().name, key=signer_in(home).public.hex())


def sign_report(folder: Path, signer: Signer) -> Path:
    """Write ``report.sig`` beside the files of a report."""
    hashes = {name: _hash(folder / name) for name in FILES}
    signature = signer.sign(_message(signer.public.hex(), hashes)).hex()
    write_json(
        folder / SIGNATURE_FILE,
        {"version": 1, "key": signer.public.hex(), "files": hashes, "signature": signature},
    )
    return folder / SIGNATURE_FILE


def verify_report(folder: Path, key: str | None = None) -> str:
    """Check a signed report; returns the signer's public key.

    Args:
        folder: where ``report.sig`` and the files of the report lie.
        key: the public key that must have signed, hexadecimal; None: whichever the file names.

    Raises:
        AuditError: no signature, not by this key, or a file has changed.
    """
    signed = _read(folder / SIGNATURE_FILE)
    if key is not None and signed["key"] != key.strip().lower():
        raise AuditError(f"the report is signed by {signed['key']}, not by {key}; do not rely on it")
    for name in FILES:
        if signed["files"].get(name) != _hash(folder / name):
            raise AuditError(f"{name} is not the file that was signed: it was changed; do not rely on it")
    message = _message(signed["key"], signed["files"])
    if not Verifier(bytes.fromhex(signed["key"])).verify(bytes.fromhex(signed["signature"]), message):
        raise AuditError(f"{SIGNATURE_FILE} is no signature by {signed['key']}; do not rely on the report")
    return signed["key"]


def _message(key: str, hashes: Mapping[str, str]) -> bytes:
    canonical = json.dumps({"key": key, "files": dict(hashes)}, sort_keys=True, separators=(",", ":"))
    return _PREFIX + canonical.encode()


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise AuditError(f"{str(path)!r} is missing; a report consists of {', '.join(FILES)}") from None


def _read(path: Path) -> dict[str, Any]:
    """A signature file whose parts have the form they must have."""
    try:
        signed = json.loads(path.read_text(encoding="utf-8"))
        key, signature, files = signed["key"], signed["signature"], signed["files"]
        if len(bytes.fromhex(key)) != 32 or len(bytes.fromhex(signature)) != 64 or key != key.lower():
            raise ValueError("wrong lengths")
        return {"key": key, "signature": signature, "files": dict(files)}
    except FileNotFoundError:
        raise AuditError(
            f"{str(path.parent)!r} is not signed: it has no {path.name}; audit again with --sign-with"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise AuditError(f"{str(path)!r} is damaged; do not rely on the report") from None
