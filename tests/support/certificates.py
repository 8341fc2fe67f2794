"""An authority that issues certificates, for servers and clients of tests."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Authority", "serving"]

_LIFETIME: Final = timedelta(days=1)


class Authority:
    """An authority of its own, which nothing else trusts.

    Args:
        directory: an existing folder, for this authority alone.

    Attributes:
        ca: PEM file of its certificate.
    """

    def __init__(self, directory: Path) -> None:
        self._directory: Final = directory
        self._key: Final = ec.generate_private_key(ec.SECP256R1())
        self._name: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {id(self):x}")])
        self._issued = 0
        extensions = (
            x509.BasicConstraints(ca=True, path_length=0),
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
        )
        certificate = self._signed(self._name, self._key.public_key(), extensions)
        self.ca: Final = directory / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, *names: str, ip: str | None = None, expired: bool = False, weak: bool = False) -> tuple[Path, Path]:
        """Return the PEM files of a new certificate and of its key, good for servers and clients.

        Args:
            names: DNS names of its subjectAltName; the first is its common name too.
            ip: IP address of its subjectAltName.
            expired: it was good until yesterday.
            weak: its key is one that can be broken.
        """
        key = rsa.generate_private_key(65537, 1024) if weak else ec.generate_private_key(ec.SECP256R1())  # noqa: S505 -- weak
        alternatives = [*map(x509.DNSName, names), *([x509.IPAddress(ip_address(ip))] if ip else [])]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if names else [])
        extensions = (
            x509.BasicConstraints(ca=False, path_length=None),
            *([x509.SubjectAlternativeName(alternatives)] if alternatives else []),
        )
        certificate = self._signed(subject, key.public_key(), extensions, expired=expired)
        self._issued += 1
        chain, secret = (self._directory / f"{self._issued}.{kind}.pem" for kind in ("certificate", "key"))
        chain.write_bytes(certificate.public_bytes(Encoding.PEM))
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return chain, secret

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        extensions: tuple[x509.ExtensionType, ...],
        *,
        expired: bool = False,
    ) -> x509.Certificate:
        # A clock that is a little behind must not make it one of tomorrow.
        begin = datetime.now(UTC) - timedelta(hours=1) - (2 * _LIFETIME if expired else timedelta())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + _LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=not isinstance(extension, x509.SubjectAlternativeName))
        return builder.sign(self._key, SHA256())


def serving(authority: Authority) -> ssl.SSLContext:
    """Return what a next hop on 127.0.0.1 does TLS with, whose certificate names the address too."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("hop.example", ip="127.0.0.1"))
    return context
