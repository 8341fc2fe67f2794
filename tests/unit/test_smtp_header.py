"""The status field and the Message-ID: what a forger writes into a header must not pass for ours."""

from __future__ import annotations

import random
import re

import pytest

from batv.smtp.header import HeaderPeek, StatusField
from batv.verdict import STATUS_BY_VERDICT
from tests.support.reference import marked

_PIECES = (
    b"X-Batv-Status",
    b"x-bATV-status",
    b":",
    b" ",
    b"\t",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b".",
    b"a",
    b"Subject: x",
    b" " * 300,
    b"y" * 2100,
    b"X-Batv",
)


def _fed(field: StatusField, message: bytes, sizes: random.Random) -> bytes:
    out, at = b"", 0
    while at < len(message):
        size = sizes.choice((1, 2, 3, 7, 50, 3000))
        out += field.feed(message[at : at + size])
        at += size
    return out + field.finish()


def test_fields_go_as_an_obvious_reading_has_it_however_the_octets_arrive() -> None:
    """20 000 headers of awkward pieces, split at random."""
    chance = random.Random(1)
    for _ in range(70_000):
        message = b"".join(chance.choice(_PIECES) for _ in range(chance.randrange(14))) + b"\r\n"
        if re.search(rb"(?i)x-batv-status[ \t]{900}", message):
            continue  # white space without end after the name: see below
        status = chance.choice((None, b"valid"))
        assert _fed(StatusField(status), message, chance) == marked(status, message), message


@pytest.mark.parametrize(
    "header",
    [
        b"X-Batv-Status: valid\r\n",
        b".X-Batv-Status: valid\r\n",
        b"X-Batv-Status:\r\n valid\r\n",
        b"X-Batv-Status\r\n : valid\r\n",
        b"X-Batv-Status" + b" " * 5000 + b": valid\r\n",
        b"x-batv-STATUS \t: valid\r\n.\tand more\r\n",
        b" , valid\r\n",
        b". , valid\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_no_spelling_of_a_forged_field_passes(header: bytes, size: int) -> None:
    """White space before the colon, stuffed dots, continuation lines: a filter behind us reads each as the field."""
    message = header + b"Subject: x\r\n\r\nX-Batv-Status: in the body\r\n"
    field = StatusField(b"invalid, missing")
    out = b"".join(field.feed(message[at : at + size]) for at in range(0, len(message), size)) + field.finish()
    assert out == b"X-Batv-Status: invalid, missing\r\nSubject: x\r\n\r\nX-Batv-Status: in the body\r\n"


def test_a_message_of_nothing_gets_the_field() -> None:
    """A lone dot after DATA is a message too."""
    assert StatusField(b"valid").finish() == b"X-Batv-Status: valid\r\n"


def test_what_may_be_added_is_known_beforehand() -> None:
    """SIZE is lowered by as much in EHLO."""
    assert max(len(StatusField(status).finish()) for status in STATUS_BY_VERDICT.values()) == StatusField.MAX_OCTETS


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (b"Subject: x\r\nMessage-ID: <a@b>\r\n\r\n", b"<a@b>"),
        (b"message-id:<a@b>\r\n\r\n", b"<a@b>"),
        (b"Message-ID:\r\n <folded@b>\r\n\r\n", b"<folded@b>"),
        (b"Subject: x\r\n\r\nMessage-ID: <in.the@body>\r\n", b""),
        (b"\r\nMessage-ID: <in.the@body>\r\n", b""),
        (b"Message-ID: <no.body@b>\r\n", b"<no.body@b>"),
        (b"X: " + b"y" * 70_000 + b"\r\nMessage-ID: <too.late@b>\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_the_message_id_is_read_from_the_header(message: bytes, found: bytes, size: int) -> None:
    """It is what an administrator looks for in the journal."""
    peek = HeaderPeek()
    for at in range(0, len(message), size):
        peek.feed(message[at : at + size])
    peek.finish()
    assert peek.message_id == found


@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_whom_replies_may_go_to_is_read_from_the_header(size: int) -> None:
    """The first field of each name counts, as mail programs have it, folded or not; none of the body does."""
    message = (
        b"X-From: x@x\r\nFrom-X: x@x\r\nFrom : Joe\r\n <joe@example.com>\r\nFrom: second@x\r\n"
        b"SENDER:sec@example.com\r\n"
        b"Reply-To: a@example.com,\r\n\tb@example.com\r\nDisposition-Notification-To: <c@example.com>\r\n"
        b"\r\nSender: in.the@body\r\n"
    )
    for wanted in (True, False):
        peek = HeaderPeek(read_senders=wanted)
        for at in range(0, len(message), size):
            peek.feed(message[at : at + size])
        peek.finish()
        found = b" ".join(peek.senders).split()
        assert (
            found
            == [
                b"joe",
                b"<joe@example.com>",
                b"sec@example.com",
                b"a@example.com,",
                b"b@example.com",
                b"<c@example.com>",
            ]
            * wanted
        )
