"""TLS: the contexts of a listener and of a next hop, and what a peer's certificate says of it.

Certificates and keys are files in PEM. A key that other users may read is refused, as a key ring is.

Source: RFC 3207 (STARTTLS), RFC 8314 section 3.3 (TLS from the first octet), RFC 7435 (opportunistic security),
RFC 8996 (nothing older than TLS 1.2), RFC 9525 section 6 (names).
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.errors import ConfigError, UnsafeFileError

if TYPE_CHECKING:
    from batv.config import NextHopTls

__all__ = ["certificate_names", "client_context", "describe", "server_context"]

_GROUP_OR_OTHERS: Final = 0o077
_GROUP_MAY_READ: Final = 0o040
"""What the mask of an access control list looks like, by which the service manager hands over a credential."""

_MAX_OCTETS: Final = 1 << 20
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def server_context(certificate: str, key: str | None, client_ca: str | None) -> ssl.SSLContext:
    """Return the context of a listener.

    Args:
        certificate: PEM file of the certificate and its chain.
        key: PEM file of its key; None if the key is in the file of the certificate.
        client_ca: PEM file of the authorities for clients' certificates; None if clients are not asked for one.
            A client may go without; the handshake fails with one that shows what no such authority signed.

    Raises:
        ConfigError: a file is missing, cannot be read or holds something else, or the key is another certificate's.
        UnsafeFileError: others can read the key.
    """
    chain = _read("certificate", certificate)
    secret = _read("key", key, private=True) if key is not None else _read("key", certificate, private=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    # Of what both know, the server's order decides: a client may put what is fast for it first.
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # Without a password, OpenSSL would ask at the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, "")
    except (OSError, ValueError) as error:
        raise _unusable(certificate, key or certificate, chain, secret) from error
    if client_ca is not None:
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(mode: NextHopTls, ca: str | None) -> ssl.SSLContext:
    """Return the context of connections to a next hop.

    Args:
        mode: anything but `off`. `opportunistic` takes every certificate: it keeps the mail from those who only listen.
        ca: PEM file of the authorities to trust; None for those of the system.

    Raises:
        ConfigError: the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    if not mode.verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        _trust(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def certificate_names(ssl_object: ssl.SSLObject) -> frozenset[str]:
    """Return the DNS names in the subjectAltName of the peer's verified certificate, in lower case; else nothing.

    The subject's common name is not looked at: no rule says what stands in it (RFC 9525 section 2).
    """
    # Of a certificate that is not verified, the dictionary is empty.
    found = ssl_object.getpeercert() or {}
    return frozenset(str(entry[1]).lower() for entry in found.get("subjectAltName", ()) if entry[0] == "DNS")


def describe(ssl_object: ssl.SSLObject) -> str:
    """Return protocol and cipher for the log, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`; empty before the handshake."""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()} {cipher[0]}" if cipher is not None else ""


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Compression tells those who listen what is in a message by its length (CRIME); renegotiation is work for nothing.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _trust(context: ssl.SSLContext, ca: str) -> None:
    octets = _read("certificate", ca)
    try:
        context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        what = "it is damaged" if _CERTIFICATE in octets else "it holds no certificate in PEM form"
        raise ConfigError(f"cannot use the certificate {ca}: {what}", "name the PEM file of the authority") from error


def _read(noun: str, path: str, *, private: bool = False) -> bytes:
    """Return what a file holds, once it is known to be safe. Links are followed: certbot's certificates are such."""
    try:
        with open(path, "rb", opener=_without_blocking) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"cannot use the {noun} {path}: it is no regular file", "name a PEM file")
            if private:
                _check_private(path, stat.S_IMODE(found.st_mode))
            return file.read(_MAX_OCTETS)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = f"put it there, or give it to user {os.geteuid()}, as whom this runs"
        raise ConfigError(f"cannot use the {noun} {path}: {reason}", remedy) from error


def _without_blocking(path: str, flags: int) -> int:
    # A FIFO cannot hold us then; for a regular file that changes nothing.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_private(path: str, mode: int) -> None:
    # Its owner needs no check: what others than root have closed to everybody else could not be opened.
    credential = str(Path(path).parent) == os.environ.get("CREDENTIALS_DIRECTORY")
    allowed = _GROUP_MAY_READ if credential else 0
    if mode & _GROUP_OR_OTHERS & ~allowed:
        raise UnsafeFileError(f"{path} has mode {mode:04o}, open to other users", f"run chmod 600 {path}")


def _unusable(certificate: str, key: str, chain: bytes, secret: bytes) -> ConfigError:
    """Return why OpenSSL refused the two, of which it says little."""
    if _CERTIFICATE not in chain:
        said = f"cannot use the certificate {certificate}: it holds no certificate in PEM form"
        return ConfigError(said, "name the file that begins with -----BEGIN CERTIFICATE-----")
    if not _KEY.search(secret):
        said = f"cannot use the key {key}: it holds no key in PEM form"
        return ConfigError(said, "set tls_key to the file of the key")
    if b"ENCRYPTED" in secret:
        said = f"cannot use the key {key}: it is encrypted, and nobody is there to give the password"
        return ConfigError(said, "write it out with 'openssl pkey', mode 0600")
    # Needed for this alone, and they cost memory.
    from cryptography import x509  # noqa: PLC0415 -- see above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 -- see above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 -- see above

    try:
        named, own = x509.load_pem_x509_certificate(chain).public_key(), load_pem_private_key(secret, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        said = f"cannot use the certificate {certificate}: it or its key {key} is damaged, or of a kind not known here"
        return ConfigError(said, "put both there anew")
    if named != own:
        said = f"cannot use the certificate {certificate}: the key {key} is that of another one"
        return ConfigError(said, "name the two that belong together, the server's own certificate first in its file")
    return ConfigError(f"cannot use the certificate {certificate}: OpenSSL takes it for too weak", "make a new one")
