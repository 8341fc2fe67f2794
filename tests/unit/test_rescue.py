"""What a message with a null sender says that it answers."""

from __future__ import annotations

import base64
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.dialects import DIALECTS, Action, Dialect, Report
from batv.corpus.letters import letter
from batv.corpus.replies import AUTOMATIC
from batv.rescue import FIRST_PART_OCTETS, Claims, Kind, addresses_in, claims_of, message_ids_in

if TYPE_CHECKING:
    from pathlib import Path

_JOE: Final = "joe@example.com"
_BOB: Final = "bob@peer.example"


def wire(text: str) -> bytes:
    """Return a text with line ends as they come over the wire."""
    return text.encode().replace(b"\n", b"\r\n")


def report(action: Action = Action.FAILED, seed: int = 1) -> Report:
    """Return what a bounce of Joe's letter to Bob says."""
    rng = Random(seed)
    return Report(
        rng,
        action,
        _JOE,
        _BOB,
        letter(rng, _JOE, _BOB, 1_780_000_000),
        "mx.peer.example",
        "mx1.away.example",
        "192.0.2.7",
        "5.1.1" if action is Action.FAILED else "4.4.1" if action is Action.DELAYED else "2.1.5",
        "550 5.1.1 no such user",
        1_780_000_100,
        "9.report",
    )


DSN: Final = """\
From: MAILER-DAEMON@mx.peer.example
To: joe@example.com
References: <never-1@example.com>
Content-Type: multipart/report; report-type=delivery-status;
 boundary="=_b"

--=_b

Bob could not be reached: see <text@example.com>.
Message-ID: <in-the-text@example.com>

--=_b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.peer.example

Original-Recipient: rfc822;Bob@Peer.example
Final-Recipient: RFC822; <bobby@store.peer.example>
Action: failed

Final-Recipient: rfc822;
 eve@peer.example
--=_b
Content-Type: message/rfc822

Received: from a by b
Message-ID:
 <original@example.com>
In-Reply-To: <never-2@example.com>
References: <never-3@example.com>
From: joe@example.com

Message-ID: <never-4@example.com>
--=_b--
"""


def test_a_report_names_the_returned_original_and_its_recipients() -> None:
    """Nothing else of it: what stands in the original's other fields is whoever forged that's choice."""
    assert claims_of(wire(DSN)) == Claims(
        Kind.DSN,
        (b"original@example.com",),
        (b"Bob@Peer.example", b"bobby@store.peer.example", b"eve@peer.example"),
        (b"example.com",),
    )


def test_a_report_bears_the_names_that_the_original_has_of_its_own() -> None:
    """Those of its Message-ID and of its DKIM signatures, a few; anybody can write them there."""
    signature = (
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; s=d;\n\td = Mail.Example; h=from; bh=d=x; b=c;d=no\n"
    )
    octets = wire(DSN).replace(b"Received: from a", wire(signature * 20) + b"Received: from a")
    assert claims_of(octets).origins == (b"example.com", b"mail.example")
    assert claims_of(octets.replace(b"message/rfc822", b"text/plain")).origins == ()


def test_a_report_that_returns_the_header_alone_names_the_original() -> None:
    """Which is what RET=HDRS asks for; encoded as some servers do."""
    head = base64.b64encode(b"From: joe@example.com\r\nMessage-ID: <original@example.com>\r\n").decode()
    for kind in ("text/rfc822-headers", "message/global-headers", "Text/RFC822-Headers; charset=utf-8"):
        octets = wire(DSN).replace(b"message/rfc822", kind.encode())
        assert claims_of(octets).message_ids == (b"original@example.com",)
        begin, _, _ = octets.partition(b"Received: from a")
        begin = begin.removesuffix(b"\r\n") + b"Content-Transfer-Encoding: base64\r\n\r\n"
        assert claims_of(begin + head.encode() + b"\r\n--=_b--\r\n").message_ids == (b"original@example.com",)


def test_a_receipt_names_the_original_and_speaks_of_its_sender() -> None:
    """And of anybody in the sender's domain; its recipient fields say nothing more."""
    octets = wire(
        "From: Bob <bob@peer.example>\nIn-Reply-To: <first@example.com>\n"
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=b\n\n"
        "--b\n\nIt was read.\n--b\nContent-Type: message/disposition-notification\n\n"
        "Final-Recipient: rfc822;other@else.example\nOriginal-Message-ID: <second@example.com>\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\n\n--b--\n"
    )
    assert claims_of(octets) == Claims(
        Kind.MDN, (b"first@example.com", b"second@example.com"), (b"bob@peer.example", b"@peer.example")
    )


@pytest.mark.parametrize(
    "field",
    ["Auto-Submitted: auto-replied (vacation)", "X-Autoreply: yes", "X-Autorespond: x", "Precedence: auto_reply"],
)
def test_an_automatic_reply_names_what_it_answers(field: str) -> None:
    """Addresses and ids in its text count for nothing: it quotes what it answers."""
    octets = wire(
        f"From: bob@peer.example\n{field}\nIn-Reply-To: <original@example.com>\nReferences: <never@example.com>\n\n"
        "I am away, write to eve@peer.example.\n\n> Message-ID: <never-2@example.com>\n"
    )
    assert claims_of(octets) == Claims(
        Kind.AUTO_REPLY, (b"original@example.com",), (b"bob@peer.example", b"@peer.example")
    )


def test_an_answer_to_an_invitation_is_known_by_its_method() -> None:
    """By the parameter of its type, or in the calendar itself."""
    for kind, text in (("text/calendar; method=REPLY", ""), ("text/calendar", "METHOD:REPLY\n")):
        octets = wire(
            "From: bob@peer.example\nIn-Reply-To: <o@example.com>\nContent-Type: multipart/alternative; boundary=b\n\n"
            f"--b\n\nAccepted.\n--b\nContent-Type: {kind}\n\nBEGIN:VCALENDAR\n{text}END:VCALENDAR\n--b--\n"
        )
        found = claims_of(octets)
        assert (found.kind, found.message_ids) == (Kind.CALENDAR, (b"o@example.com",))
        assert claims_of(octets.replace(b"REPLY", b"REQUEST")).kind is Kind.OTHER


def test_the_bounce_of_an_old_server_is_read_as_a_text() -> None:
    """The addresses before the copy of the original, and the copy's Message-ID."""
    octets = wire(
        "From: MAILER-DAEMON@mx.peer.example\n\nI wasn't able to deliver your message.\n\n<bob@peer.example>:\n"
        "Sorry, no mailbox here by that name.\n\n--- Below this line is a copy of the message.\n\n"
        "Return-Path: <joe@example.com>\nTo: never@else.example\nMessage-ID: <original@example.com>\n"
        "References: <never@example.com>\n\ntext\n"
    )
    assert claims_of(octets) == Claims(
        Kind.OTHER,
        (b"original@example.com",),
        (b"MAILER-DAEMON@mx.peer.example", b"@mx.peer.example", b"bob@peer.example"),
    )
    failed = b"Auto-Submitted: auto-replied\r\nX-Failed-Recipients: eve@peer.example\r\n" + octets
    assert b"eve@peer.example" in claims_of(failed).parties


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_reports_of_real_systems_name_message_and_recipient(dialect: Dialect) -> None:
    """As far as they return the original at all."""
    for action in dialect.actions:
        for seed in range(5):
            found = report(action, seed)
            octets = dialect.write(found).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            claims = claims_of(octets)
            message_id = found.letter.message_id.encode()
            assert (message_id.strip(b"<>") in claims.message_ids) is (message_id in octets)
            assert _BOB.encode() in claims.parties or not claims.message_ids


@pytest.mark.parametrize("what", AUTOMATIC)
def test_automatic_replies_name_message_and_party(what: str) -> None:
    """Vacation notices, challenges, receipts, answers to invitations, notices of lists."""
    found = report(Action.DELIVERED)
    claims = claims_of(AUTOMATIC[what](found))
    assert claims.message_ids == (found.letter.message_id.strip("<>").encode(),)
    assert claims.parties == (_BOB.encode(), b"@peer.example")


@pytest.mark.realcorpus
def test_real_bounces_that_return_a_message_id_are_understood(real_corpora: Path) -> None:
    """All but one, whose sender and text hold no address."""
    with_id = understood = 0
    kinds: dict[Kind, int] = {}
    for path in sorted(real_corpora.rglob("*.eml")):
        octets = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        head, _, body = octets.partition(b"\r\n\r\n")
        named = b"message-id:" in body.lower() or b"\nin-reply-to:" in head.lower()
        found = claims_of(octets)
        kinds[found.kind] = kinds.get(found.kind, 0) + 1
        with_id += named
        understood += named and bool(found.message_ids and found.parties)
        assert named or not found.message_ids
    assert (with_id, understood) == (39, 38)
    assert (kinds[Kind.DSN], kinds[Kind.MDN]) == (30, 2)


def test_ids_come_without_brackets_and_white_space() -> None:
    """As they are compared: a fold may stand in the middle of one."""
    assert message_ids_in(b" Your message <a@x> of <b\t @y>,<a@x>") == (b"a@x", b"b@y")
    assert message_ids_in(b"  bare@x ") == (b"bare@x",)
    assert message_ids_in(b"<half@x") == (b"half@x",)
    for nothing in (b"", b" ", b"<>", b"two words", b"< >"):
        assert message_ids_in(nothing) == ()
    assert len(message_ids_in(b"".join(b"<%d@x>" % number for number in range(100)))) == 8


def test_addresses_are_found_in_texts() -> None:
    """Whole, once each, with what quotes protect."""
    text = b'"Bob" <bob@peer.example>, "a b"@x.example. See carol@y.example. d@[192.0.2.1] caf\xc3\xa9@x.example @z x@'
    assert addresses_in(text) == (
        b"bob@peer.example",
        b'"a b"@x.example',
        b"carol@y.example",
        b"d@[192.0.2.1]",
        b"caf\xc3\xa9@x.example",
    )
    assert len(addresses_in(b" a@b" * 9 + b"".join(b" %d@b" % number for number in range(99)))) == 32


def test_what_stands_beyond_the_first_part_is_not_read() -> None:
    """The bound is documented, and what comes later costs nothing."""
    filler = b"x" * 70 + b"\r\n"
    octets = b"From: bob@peer.example\r\n" + b"X-Filler: " + filler
    late = octets + b"\r\n" + filler * (FIRST_PART_OCTETS // len(filler)) + b"\r\nMessage-ID: <late@x>\r\n"
    assert claims_of(late).message_ids == ()
    assert claims_of(octets + b"\r\n\r\nMessage-ID: <soon@x>\r\n").message_ids == (b"soon@x",)
