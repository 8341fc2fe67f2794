"""The signature in a tag: what is hashed, the HMAC, its truncation, and the comparison.

The hash source is the address without brackets, `local@domain`, after the key number and the day stamp:
`HMAC-SHA1(secret, K || DDD || local@domain)`, of which the first three octets are written in lower-case hex.
SHA-1 is the draft's; what is known against it concerns collisions, on which an HMAC does not rest.

The strong scheme hashes the same source with HMAC-SHA256 and writes five octets. Its key is derived from the secret of
the ring, so that what is found out about one scheme's key says nothing of the other's.

Source: draft-levine-smtp-batv-01 section 4; RFC 2104; RFC 5869; the strong scheme is our own.
"""

from __future__ import annotations

from binascii import b2a_hex
from enum import Enum
from functools import lru_cache
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from batv.address import fold
from batv.keyring import KEY_NUMBERS, Secret
from batv.tag import Scheme

if TYPE_CHECKING:
    from batv.address import Mailbox
    from batv.keyring import Key

__all__ = ["Case", "derive", "sign", "verify"]

_SIGNATURE_OCTETS: Final = 3
_STRONG_SIGNATURE_OCTETS: Final = 5
_SIGNATURE_DIGITS: Final = 2 * _SIGNATURE_OCTETS
_STRONG_SECRET_OCTETS: Final = 32
_NUMBERS: Final = tuple(b"%d" % number for number in KEY_NUMBERS)


class Case(Enum):
    """How the hash source treats ASCII letters."""

    FOLD = "fold"  # to lower case: some peers fold addresses in transit
    EXACT = "exact"  # as written: the draft's, for keys shared with Exim or batv-tools


# An enum takes its time to find a member, so it is asked once.
_FOLD: Final = Case.FOLD
_EXACT: Final = Case.EXACT
_DRAFT: Final = Scheme.DRAFT


def derive(secret: Secret, purpose: bytes, octets: int) -> bytes:
    """Return a key for one purpose that tells nothing of the secret, nor of the keys for other purposes.

    Args:
        secret: what it is derived from.
        purpose: what it is for; each use has a name of its own.
        octets: how many octets are wanted, at most 8160.

    Source: RFC 5869, with SHA-256 and without a salt.
    """
    return HKDF(SHA256(), octets, salt=None, info=b"batv " + purpose).derive(secret.octets)


def sign(key: Key, stamp: bytes, mailbox: Mailbox, case: Case, scheme: Scheme = Scheme.DRAFT) -> bytes:
    """Return the hex digits that belong to key, stamp and mailbox: six, or ten in the strong scheme.

    Args:
        key: the key whose number and secret are used.
        stamp: three digits, the expiry day modulo 1000.
        mailbox: the address without a tag.
        case: whether letters are folded before hashing.
        scheme: how it is signed.
    """
    source = mailbox.local + b"@" + mailbox.domain
    digits = _digits if scheme is _DRAFT else _strong_digits
    return digits(key, stamp, source if case is _EXACT else fold(source))


def verify(key: Key, stamp: bytes, mailbox: Mailbox, signature: bytes) -> Case | None:
    """Return the case in which the signature fits, or None. Both are tried: switching never kills a live tag.

    The number of digits tells the scheme. The comparison takes the same time wherever the digits differ.
    """
    source = mailbox.local + b"@" + mailbox.domain
    folded = fold(source)
    digits = _digits if len(signature) == _SIGNATURE_DIGITS else _strong_digits
    if compare_digest(digits(key, stamp, folded), signature):
        return _FOLD
    if folded != source and compare_digest(digits(key, stamp, source), signature):
        return _EXACT
    return None


def _digits(key: Key, stamp: bytes, source: bytes) -> bytes:
    state = _keyed(key.secret.octets).copy()
    state.update(_NUMBERS[key.number] + stamp + source)
    return b2a_hex(state.finalize()[:_SIGNATURE_OCTETS])


def _strong_digits(key: Key, stamp: bytes, source: bytes) -> bytes:
    state = _strongly_keyed(key.secret.octets).copy()
    state.update(_NUMBERS[key.number] + stamp + source)
    return b2a_hex(state.finalize()[:_STRONG_SIGNATURE_OCTETS])


# Setting up a keyed state costs more than hashing an address, so it is done once for a secret and copied. The bound
# leaves room for ten keys in each of a thousand rings.
@lru_cache(maxsize=10_000)
def _keyed(secret: bytes) -> HMAC:
    return HMAC(secret, SHA1())  # noqa: S303 -- the draft's hash; see the head of the module


@lru_cache(maxsize=10_000)
def _strongly_keyed(secret: bytes) -> HMAC:
    return HMAC(derive(Secret(secret), b"tags of the strong scheme", _STRONG_SECRET_OCTETS), SHA256())
