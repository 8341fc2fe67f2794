"""Whatever octets come, what they claim is known soon, and within bounds."""

from __future__ import annotations

import time
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.rescue import FIRST_PART_OCTETS, addresses_in, claims_of, message_ids_in

_WORDS: Final = (
    b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b":", b";", b"<", b">", b"@", b'"', b"\\", b"--", b"--b", b"--b--", b"=",
    b"Content-Type:", b"multipart/report", b"; boundary=b", b'; boundary="b"', b"message/rfc822", b"text/plain",
    b"message/delivery-status", b"message/disposition-notification", b"text/calendar", b"Content-Transfer-Encoding:",
    b"base64", b"quoted-printable", b"Final-Recipient: rfc822;", b"Message-ID:", b"In-Reply-To:", b"From:",
    b"X-Failed-Recipients:", b"a@b", b"<1@x>", b"\xff", b"\0",
)  # fmt: skip
_MESSAGES: Final = st.lists(st.sampled_from(_WORDS) | st.binary(max_size=8), max_size=80).map(b"".join)


@given(_MESSAGES)
def test_any_octets_are_understood_without_an_error(octets: bytes) -> None:
    """Whoever may write anything must not choose what our errors are."""
    found = claims_of(octets)
    assert len(found.message_ids) <= 8
    assert len(found.parties) <= 32
    for each in found.message_ids:
        assert each
        assert not set(each) & set(b"<> \t\r\n")
    for each in found.parties:
        assert b"@" in each[-256:]


@given(st.binary(max_size=300))
def test_any_value_of_a_field_is_read_without_an_error(octets: bytes) -> None:
    """The outbound proxy reads the same fields."""
    assert all(message_ids_in(octets))
    assert all(addresses_in(octets))


_NESTED: Final = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(5000)
)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n" + b'"\\' * FIRST_PART_OCTETS,
        b"From: " + b"a" * FIRST_PART_OCTETS,
        b"\r\n" + b"a@" * FIRST_PART_OCTETS,
        b"a:\r\n" * FIRST_PART_OCTETS,
        b"a:\r\n " * FIRST_PART_OCTETS,
        b"\r\n" + b" \r\n" * FIRST_PART_OCTETS,
        b"In-Reply-To: " + b"<" * FIRST_PART_OCTETS,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * FIRST_PART_OCTETS,
        b"Content-Type: multipart/mixed" + b'; boundary="b' * FIRST_PART_OCTETS,
        b"Content-Type: message/delivery-status\r\n\r\n" + b"Final-Recipient: a@b\r\n" * FIRST_PART_OCTETS,
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=A" * FIRST_PART_OCTETS,
        _NESTED,
    ],
    ids=[
        "quotes", "one word", "ats", "fields", "folds", "spaces", "brackets", "parts", "boundaries", "recipients",
        "base64", "nested",
    ],
)  # fmt: skip
def test_no_message_takes_long(octets: bytes) -> None:
    """Each costs time that grows with its length and no faster."""
    began = time.thread_time()
    claims_of(octets)
    assert time.thread_time() - began < 0.5
