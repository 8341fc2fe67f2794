"""Signatures: the draft's formula, and a comparison that takes both cases."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from batv import mac
from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, Secret
from batv.mac import Case
from batv.tag import Scheme

DAY = Day.from_iso("2026-11-23")
USER = Mailbox.parse(b"user@example.com")
MIXED = Mailbox.parse(b"Joe.Doe@Example.COM")


def key(secret: bytes, number: int = 0) -> Key:
    """Return a key with a secret."""
    return Key(number, Secret(secret), DAY)


def formula(secret: bytes, source: bytes) -> bytes:
    """Return the signature as the standard library computes it."""
    return hmac.new(secret, source, hashlib.sha1).hexdigest()[:6].encode()  # noqa: TID251 -- the other side of the test


def test_the_known_answer_of_the_formula() -> None:
    """The octets on which every implementation agrees."""
    assert mac.sign(key(b"secret"), b"007", USER, Case.FOLD) == b"21afe1"
    assert mac.sign(key(b"secret"), b"007", USER, Case.EXACT) == b"21afe1"


@pytest.mark.parametrize("secret", [b"x", b"secret", bytes(32), bytes(range(256)), b"\0", b"k" * 64, b"k" * 65])
@pytest.mark.parametrize("number", range(10))
def test_a_signature_is_the_start_of_the_hmac_over_number_stamp_and_address(secret: bytes, number: int) -> None:
    """Each part counts: a tag of another key, day or user must not fit."""
    for mailbox in (USER, MIXED, Mailbox.parse('"jörg B"@Exämple.com'.encode())):
        source = b"%d042%b" % (number, mailbox.octets)
        assert mac.sign(key(secret, number), b"042", mailbox, Case.EXACT) == formula(secret, source)
        assert mac.sign(key(secret, number), b"042", mailbox, Case.FOLD) == formula(secret, source.lower())


def test_a_signature_fits_in_the_case_in_which_it_was_made() -> None:
    """Both are tried, so that switching the setting never kills a live tag."""
    one = key(b"secret")
    for case in Case:
        signature = mac.sign(one, b"787", MIXED, case)
        assert mac.verify(one, b"787", MIXED, signature) is case
    folded = mac.sign(one, b"787", MIXED, Case.FOLD)
    lower = Mailbox.parse(MIXED.octets.lower())
    assert mac.verify(one, b"787", lower, folded) is Case.FOLD
    assert mac.verify(one, b"787", lower, mac.sign(one, b"787", MIXED, Case.EXACT)) is None


def test_in_lower_case_both_are_the_same_octets() -> None:
    """Such an address is said to fit folded, whatever the signer's setting."""
    one = key(b"secret")
    assert mac.verify(one, b"787", USER, mac.sign(one, b"787", USER, Case.EXACT)) is Case.FOLD


def test_a_signature_that_differs_in_any_digit_does_not_fit() -> None:
    """All six digits are compared."""
    one = key(b"secret")
    for case in Case:
        signature = mac.sign(one, b"787", MIXED, case)
        for place in range(6):
            for digit in b"0123456789abcdef":
                other = signature[:place] + bytes((digit,)) + signature[place + 1 :]
                assert (mac.verify(one, b"787", MIXED, other) is case) is (other == signature)


@pytest.mark.parametrize("signature", [b"", b"2", b"21afe", b"21afe1a", b"21afe1a20c29604358f22a850c09df7945db15e6"])
def test_a_signature_of_another_length_does_not_fit(signature: bytes) -> None:
    """A comparison over the shorter length would make guessing easy."""
    assert mac.verify(key(b"secret"), b"007", USER, signature) is None


def test_signatures_of_one_key_never_depend_on_what_another_signed_before() -> None:
    """Keyed states are kept and copied: a state that was used up would change the next signature."""
    keys = [key(b"secret %d" % number, number % 10) for number in range(50)]
    for _ in range(3):
        for each in keys:
            source = b"%d787user@example.com" % each.number
            assert mac.sign(each, b"787", USER, Case.FOLD) == formula(each.secret.octets, source)


def expanded(secret: bytes, info: bytes, octets: int) -> bytes:
    """Return HKDF with SHA-256 and no salt as RFC 5869 writes it, computed with the standard library."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()  # noqa: TID251 -- the other side of the test
    block, output = b"", b""
    for number in range(1, octets // 32 + 2):
        block = hmac.new(extracted, block + info + bytes((number,)), hashlib.sha256).digest()  # noqa: TID251 -- as above
        output += block
    return output[:octets]


@pytest.mark.parametrize("secret", [b"x", b"secret", bytes(32), b"k" * 65])
@pytest.mark.parametrize("octets", [16, 32, 100])
def test_a_key_for_another_purpose_is_derived_as_the_rfc_says(secret: bytes, octets: int) -> None:
    """Whatever is sealed or hashed with it must be found again by the next version."""
    assert mac.derive(Secret(secret), b"some purpose", octets) == expanded(secret, b"batv some purpose", octets)


def test_keys_of_different_purposes_have_nothing_in_common() -> None:
    """Whoever learns one of them learns nothing of the others, nor of the secret."""
    keys = [mac.derive(Secret(b"secret"), purpose, 32) for purpose in (b"one", b"two", b"one ")]
    assert len(set(keys)) == 3
    assert mac.derive(Secret(b"Secret"), b"one", 32) not in keys


@pytest.mark.parametrize("secret", [b"secret", bytes(32)])
def test_a_strong_signature_is_ten_digits_of_hmac_sha256_with_a_derived_key(secret: bytes) -> None:
    """Every host of a site must come to the same octets."""
    derived = expanded(secret, b"batv tags of the strong scheme", 32)
    for mailbox in (USER, MIXED):
        digits = hmac.new(derived, b"7042" + mailbox.octets, hashlib.sha256).hexdigest()[:10].encode()  # noqa: TID251 -- the other side of the test
        assert mac.sign(key(secret, 7), b"042", mailbox, Case.EXACT, Scheme.STRONG) == digits
        assert mac.verify(key(secret, 7), b"042", mailbox, digits) is not None
