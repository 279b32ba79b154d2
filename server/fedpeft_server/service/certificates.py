"""The coordinator's own certificate authority and the server certificate that it signs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedpeft.errors import ConfigError
from fedpeft.runstore import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, GeneralName

CA_DAYS = 3650
SERVER_DAYS = 90
RENEW_SHARE = 1 / 3
"""A certificate is renewed when no more than this share of its life is left."""
_SKEW = timedelta(minutes=5)
_ALWAYS = ("localhost", "127.0.0.1", "::1")


def create(folder: Path, name: str, host: str) -> None:
    """Write ``ca.key``, ``ca.crt``, ``server.key`` and ``server.crt``; keys are readable by the owner only.

    Args:
        folder: where to.
        name: of the federation, for people.
        host: name or address that nodes connect to; loopback names are always valid too.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    ca, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    write_atomic(folder / "ca.key", _key_pem(ca))
    write_atomic(folder / "server.key", _key_pem(server))
    write_atomic(folder / "ca.crt", _certificate_pem(_authority(ca, name)))
    renew(folder, host)


def renew(folder: Path, host: str) -> None:
    """Sign the server's key again, for another `SERVER_DAYS`, with the same CA: no node notices.

    The key stays, so that one file changes and no kill can leave a pair that does not belong together.

    Raises:
        ConfigError: CA or key cannot be read, or the CA ends sooner than a certificate may be useful.
    """
    ca, server = _load_key(folder / "ca.key"), _load_key(folder / "server.key")
    issuer = load(folder / "ca.crt")
    end = min(_now() + timedelta(days=SERVER_DAYS), issuer.not_valid_after_utc)
    if end < _now() + timedelta(days=1):
        raise ConfigError(f"the CA ends on {issuer.not_valid_after_utc:%Y-%m-%d}: set up a new coordinator")
    write_atomic(folder / "server.crt", _certificate_pem(_leaf(ca, issuer, server, host, end)))


def load(path: Path) -> Certificate:
    """A certificate from a PEM file.

    Raises:
        ConfigError: the file holds none.
    """
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(f"{path} is missing or no certificate; restore it from a backup") from None


def days_left(certificate: Certificate) -> float:
    """Days until a certificate ends; negative afterwards."""
    return (certificate.not_valid_after_utc - _now()) / timedelta(days=1)


def needs_renewal(certificate: Certificate) -> bool:
    """Whether no more than a third of its life is left."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - _now() <= RENEW_SHARE * life


def belongs(folder: Path) -> bool:
    """Whether ``server.crt`` is for ``server.key`` and signed by ``ca.crt``."""
    from cryptography.exceptions import InvalidSignature

    server, issuer = load(folder / "server.crt"), load(folder / "ca.crt")
    try:
        server.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return server.public_key() == _load_key(folder / "server.key").public_key()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _load_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return cast("EllipticCurvePrivateKey", load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{path} is missing or no private key; restore it from a backup") from None


def _authority(key: EllipticCurvePrivateKey, name: str) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.x509.oid import NameOID

    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:40]} fedpeft CA")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _SKEW)
        .not_valid_after(_now() + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), True)
        .add_extension(identifier, False)
        .sign(key, SHA384())
    )


def _leaf(
    ca: EllipticCurvePrivateKey,
    issuer: Certificate,
    server: EllipticCurvePrivateKey,
    host: str,
    end: datetime,
) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    names = [_general_name(name) for name in dict.fromkeys((host, *_ALWAYS))]
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
        .issuer_name(issuer.subject)
        .public_key(server.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(server.public_key()), False)
        .sign(ca, SHA384())
    )


def _general_name(host: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
