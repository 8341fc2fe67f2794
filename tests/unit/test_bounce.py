"""What shows that a message with a sender is a bounce or an automatic reply, and what does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.address import Mailbox
from batv.bounce import Clue, clue_in, clue_of_sender, is_postmaster
from batv.corpus.dialects import DIALECTS, Action
from batv.corpus.notices import NOTICES
from batv.corpus.replies import AUTOMATIC
from batv.smtp.header import PEEK_OCTETS
from tests.unit.test_rescue import report

if TYPE_CHECKING:
    from batv.corpus.dialects import Dialect


@pytest.mark.parametrize(
    "address",
    [
        b"mailer-daemon@peer.example",
        b"MAILER-DAEMON@mx.peer.example",
        b"Postmaster@[192.0.2.1]",
        b"prvs=3789ab12cd=mailer-daemon@peer.example",
        b"postmaster+prvs=3789ab12cd@peer.example",
    ],
)
def test_a_mail_system_is_known_by_its_user_name(address: bytes) -> None:
    """Of any domain, in any case, and with the tag that its own site has put on."""
    assert clue_of_sender(Mailbox.parse(address)) is Clue.SENDER


@pytest.mark.parametrize(
    "address", [b"joe@mailer-daemon.example", b"mailer-daemons@x.example", b"a.postmaster@x.example"]
)
def test_nobody_else_is_a_mail_system(address: bytes) -> None:
    """A part of the name, or the domain, says nothing."""
    assert clue_of_sender(Mailbox.parse(address)) is None
    assert clue_of_sender(None) is None


def test_lists_are_about_postmaster_alone() -> None:
    """As Backscatterer.org defines safe mode: null senders and postmaster."""
    assert is_postmaster(Mailbox.parse(b"PostMaster@x.example"))
    assert not is_postmaster(Mailbox.parse(b"mailer-daemon@x.example"))
    assert not is_postmaster(None)


@pytest.mark.parametrize(
    ("header", "clue"),
    [
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=b", Clue.REPORT),
        ('content-type:\r\n\tMultipart/Report;\r\n boundary="b";\r\n Report-Type = "Delivery-Status"', Clue.REPORT),
        ("Content-Type: multipart/report; boundary=b", Clue.REPORT),
        ("Content-Type: message/delivery-status", Clue.REPORT),
        ("Content-Type: message/global-delivery-status", Clue.REPORT),
        ("Content-Type: multipart/report; report-type=disposition-notification", Clue.RECEIPT),
        ("X-Failed-Recipients: bob@peer.example\r\nAuto-Submitted: auto-replied", Clue.FAILED_RECIPIENTS),
        ("X-MS-Exchange-Message-Is-Ndr:", Clue.NDR),
        ("From: MAILER-DAEMON@peer.example (Mail Delivery System)", Clue.AUTHOR),
        ('From: "Mail Delivery System" <Mailer-Daemon@peer.example>', Clue.AUTHOR),
        ('From: "Postmaster"\r\n <postmaster@peer.example>', Clue.AUTHOR),
        ("From: MAILER-DAEMON (Mail Delivery System)", Clue.AUTHOR),
        ("Auto-Submitted: auto-replied (vacation)", Clue.REPLY),
        ("Auto-Submitted:\r\n Auto-Replied; owner=joe", Clue.REPLY),
        ("Precedence: Auto_Reply", Clue.REPLY),
        ("X-Autoreply: yes", Clue.REPLY),
        ("X-AutoRespond: Re: your mail", Clue.REPLY),
        ("Return-Path: <>", Clue.RETURN_PATH),
        ("Return-Path: <>\r\nAuto-Submitted: auto-replied", Clue.REPLY),
    ],
)
def test_a_header_shows_what_a_message_is(header: str, clue: Clue) -> None:
    """Names and words in any case, folded or not; what is a bounce is no reply."""
    for octets in (f"{header}\r\n\r\ntext\r\n", f"Subject: x\r\n{header}\r\nTo: joe@example.com\r\n"):
        assert clue_in(octets.encode()) is clue


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Auto-Submitted: no",
        "Auto-Submitted: auto-generated",
        "Auto-Submitted: auto-notified; owner-email=joe@example.com",
        "Auto-Submitted: auto-repliedx",
        "Precedence: bulk\r\nX-Auto-Response-Suppress: All",
        "X-Autoreply: no\r\nX-Autorespond:",
        "X-Autoreply-From: joe@peer.example",
        "X-Failed-Recipients: ",
        "Subject: Mail delivery failed: returning message to sender",
        "Content-Type: multipart/report; report-type=feedback-report\r\nFrom: postmaster@peer.example",
        "Content-Type: multipart/report; report-type=tlsrpt",
        "Content-Type: multipart/reporting; report-type=delivery-status",
        "Content-Type: text/plain; report-type=delivery-status",
        "Return-Path: <joe@peer.example>",
        'From: "postmaster" <joe@peer.example>',
        "From: postmaster@peer.example <joe@peer.example>",
        "From: joe@mailer-daemon.example",
        "From: Mailer-Daemonic <joe@peer.example>",
        "List-Id: <talk.peer.example>\r\nContent-Type: multipart/report; report-type=delivery-status",
        "Subject: x\r\n\r\nX-Failed-Recipients: joe@example.com",
    ],
)
def test_what_ordinary_mail_has_too_shows_nothing(header: str) -> None:
    """Shops, trackers, lists and people must not be taken for a mail system."""
    assert clue_in(f"{header}\r\n\r\ntext\r\n".encode()) is None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_bounces_of_all_systems_are_known_by_their_header(dialect: Dialect) -> None:
    """Each dialect of the corpus, failures and delays alike."""
    for action in dialect.actions:
        clue = clue_in(dialect.write(report(action)))
        assert clue is not None
        assert clue.bounce


def test_replies_are_told_from_bounces_and_from_notices() -> None:
    """A reply is marked at most; a notice is not touched. A list's notice has a header that any mail may have."""
    for what, write in AUTOMATIC.items():
        clue = clue_in(write(report(Action.DELIVERED)))
        assert clue is (None if what == "list" else Clue.RECEIPT if what == "receipt" else Clue.REPLY)
        assert clue is None or not clue.bounce
    for write in NOTICES.values():
        assert clue_in(write(report(Action.FAILED))) is None


def test_no_more_is_looked_at_than_is_promised() -> None:
    """What stands behind 64 KiB of header decides nothing."""
    filler = b"X-Filler: " + b"x" * 70 + b"\r\n"
    far = filler * (PEEK_OCTETS // len(filler) + 1) + b"X-Failed-Recipients: joe@example.com\r\n\r\n"
    assert clue_in(far) is None


_WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\t", b":", b";", b"<", b"<>", b"@", b'"', b"(", b"\0", b"\xff", b"From",
    b"Content-Type", b"multipart/report", b"; report-type", b"=", b"delivery-status", b"mailer-daemon", b"Return-Path",
    b"Auto-Submitted", b"auto-replied", b"Precedence", b"auto_reply", b"X-Autoreply", b"List-Id", b"postmaster",
)  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS) | st.binary(max_size=8), max_size=60).map(b"".join))
def test_any_octets_are_looked_at_without_an_error(octets: bytes) -> None:
    """And what follows the header changes nothing."""
    found = clue_in(octets + b"\r\n\r\n")
    assert clue_in(octets + b"\r\n\r\nX-Failed-Recipients: joe@example.com\r\n") is found


@pytest.mark.parametrize(
    "octets",
    [
        b"From:" + b" " * PEEK_OCTETS,
        b"From:" + b"<" * PEEK_OCTETS,
        b"From:" + b"\r\n " * PEEK_OCTETS,
        b"\r\nfrom".join([b"x"] * PEEK_OCTETS),
        b"Content-Type: multipart/report" + b"; report-type=" * PEEK_OCTETS,
        b"Content-Type:" + b" \r\n" * PEEK_OCTETS,
        b"auto-submitted\r\n" * PEEK_OCTETS,
    ],
    ids=["spaces", "brackets", "folds", "names", "types", "lines", "no colons"],
)
def test_no_header_takes_long(octets: bytes) -> None:
    """It is read in the loop that serves everybody."""
    began = time.thread_time()
    clue_in(octets)
    assert time.thread_time() - began < 0.1
