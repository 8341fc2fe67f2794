"""The next hop of the tour: notifications as real servers make them, and no message lost or doubled."""

from __future__ import annotations

import email.policy
import re
import smtplib
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import TYPE_CHECKING, Final

import pytest
from aiosmtpd.smtp import SMTP

from batv.demo import next_hop
from batv.demo.maildir import Maildir, deliver, mailbox_folder
from batv.demo.report import Fate, delivery_report
from batv.smtp.path import parse_mail, parse_rcpt
from tests.support.port import free_port
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NOW: Final = datetime(2026, 11, 23, tzinfo=UTC)
_LETTER: Final = b"From: joe@example.com\r\nSubject: caf\xc3\xa9\r\n\r\n.dot\r\nbody\r\n"
_SECONDS: Final = 30.0


@contextmanager
def running(mail: Path, queue: int, store: int, inbound: int) -> Iterator[None]:
    """Run the next hop on these ports of loopback."""
    options = {"--queue": queue, "--store": store, "--inbound": inbound}
    command = [sys.executable, "-P", "-m", "batv.demo.next_hop", "--mail", str(mail)]
    command += [word for name, port in options.items() for word in (name, f"127.0.0.1:{port}")]
    command += ["--user", "joe@example.com", "--user", "postmaster@example.com", "--correspondent", "friend@a.example"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == next_hop.READY + "\n"
        yield
    finally:
        process.terminate()
        process.communicate(timeout=_SECONDS)
    assert process.returncode == 0


def say(port: int, *commands: str, content: bytes = _LETTER) -> list[tuple[int, bytes]]:
    """Send commands after EHLO, then the message if the last is DATA; return each reply."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=_SECONDS) as client:
        client.ehlo()
        replies = [client.docmd(command) for command in commands]
        if replies[-1][0] == 354:
            client.send((b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
            replies.append(client.getreply())
        return replies


def report(sender: str, recipient: str, *, delivered: bool = False) -> EmailMessage | None:
    """Return the notification about a recipient."""
    fate = Fate(parse_rcpt(b"TO:" + recipient.encode()), delivered, "5.1.1", "550 5.1.1 no such user")
    octets = delivery_report(parse_mail(b"FROM:" + sender.encode()), [fate], _LETTER, "queue.example", _NOW)
    if octets is None:
        return None
    assert b"\n" not in octets.replace(b"\r\n", b"")
    message = BytesParser(EmailMessage, policy=email.policy.default).parsebytes(octets)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def parts_of(message: EmailMessage | None) -> list[EmailMessage]:
    """Return the parts of a notification."""
    assert message is not None
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    return list(message.iter_parts())  # type: ignore[arg-type]


def blocks_of(status: EmailMessage) -> list[Message]:
    """Return the blocks of the second part: about the message, then about each recipient."""
    return [block for block in status.get_payload() if isinstance(block, Message)]


def test_a_notification_says_who_failed_and_why() -> None:
    """Mail programs read the second part, so its fields are those of RFC 3464."""
    sender = "<prvs=0787f1df36=joe@example.com> ENVID=QQ+2B7"
    _, status, _ = parts_of(report(sender, "<x@a.example> ORCPT=rfc822;Old+2Bx@b.example"))
    assert status.get_content_type() == "message/delivery-status"
    about, recipient = blocks_of(status)
    assert dict(about.items()) == {"Reporting-MTA": "dns; queue.example", "Original-Envelope-Id": "QQ+7"}
    assert dict(recipient.items()) == {
        "Original-Recipient": "rfc822; Old+x@b.example",
        "Final-Recipient": "rfc822; x@a.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
    }


@pytest.mark.parametrize(
    ("ret", "kind", "body"),
    [
        ("", "text/rfc822-headers", False),
        (" RET=HDRS", "text/rfc822-headers", False),
        (" ret=full", "message/rfc822", True),
    ],
)
def test_a_notification_brings_back_what_ret_asks_for(ret: str, kind: str, body: bool) -> None:  # noqa: FBT001 -- a column
    """The sender says whether the whole message shall come back."""
    *_, returned = parts_of(report("<joe@example.com>" + ret, "<x@a.example>"))
    assert returned.get_content_type() == kind
    octets = returned.as_bytes()
    assert b"Subject: caf\xc3\xa9" in octets
    assert (b".dot" in octets) is body


@pytest.mark.parametrize(
    ("sender", "notify", "delivered", "sent"),
    [
        ("<joe@example.com>", "", False, True),
        ("<joe@example.com>", " NOTIFY=NEVER", False, False),
        ("<joe@example.com>", " NOTIFY=success,FAILURE", False, True),
        ("<joe@example.com>", " NOTIFY=SUCCESS", False, False),
        ("<joe@example.com>", " NOTIFY=SUCCESS", True, True),
        ("<joe@example.com>", "", True, False),
        ("<>", "", False, False),
    ],
)
def test_a_notification_is_sent_to_those_who_want_it(sender: str, notify: str, *, delivered: bool, sent: bool) -> None:
    """A notification nobody asked for is backscatter, and one about a notification goes round for ever."""
    assert (report(sender, "<x@a.example>" + notify, delivered=delivered) is not None) is sent


def test_a_parameter_cannot_write_fields_of_its_own() -> None:
    """An xtext can stand for a line end: whoever sends mail must not write into our notifications."""
    _, status, _ = parts_of(report("<joe@example.com> ENVID=a+0D+0ABcc:+20x@b.example", "<x@a.example>"))
    about = blocks_of(status)[0]
    assert about["Bcc"] is None
    assert about["Original-Envelope-Id"] == "a+0D+0ABcc:+20x@b.example"


def test_messages_are_delivered_all_or_none(tmp_path: Path) -> None:
    """The client hears a failure and sends the message again: what was delivered by then would come twice."""
    (tmp_path / "full").write_text("no folder")
    with pytest.raises(OSError, match="full"):
        deliver([(Maildir(tmp_path / "a"), b"x"), (Maildir(tmp_path / "full"), b"x")])
    assert Maildir(tmp_path / "a").messages() == []
    assert list((tmp_path / "a/tmp").iterdir()) == []


@pytest.mark.parametrize("mailbox", ["../../etc/x@a.example", "..@a.example", "./x@a.example", "a\0b@a.example"])
def test_no_address_leads_out_of_the_mail_folder(tmp_path: Path, mailbox: str) -> None:
    """Addresses come from peers."""
    folder = mailbox_folder(tmp_path, mailbox)
    assert folder.parent == tmp_path
    assert not folder.name.startswith(".")
    assert re.fullmatch(r"[!-~]+", folder.name)


def test_unknown_users_are_refused_in_the_session(tmp_path: Path) -> None:
    """That is what the proxies pass on, so that they are no catch-all."""
    queue, store, inbound = free_port(), free_port(), free_port()
    with running(tmp_path, queue, store, inbound):
        replies = say(
            store,
            "MAIL FROM:<> RET=HDRS ENVID=x",
            "RCPT TO:<nobody@example.com>",
            "RCPT TO:<JOE@Example.com> NOTIFY=NEVER ORCPT=rfc822;joe@example.com",
            "RCPT TO:<Postmaster>",
            "DATA",
        )
    assert [code for code, _ in replies] == [250, 550, 250, 250, 354, 250]
    (path,) = Maildir(tmp_path / "joe@example.com").messages()
    head, _, letter = path.read_bytes().partition(b"From:")
    assert head == b"Return-Path: <>\nDelivered-To: joe@example.com\n"
    assert b"From:" + letter == _LETTER.replace(b"\r\n", b"\n")
    assert len(Maildir(tmp_path / "postmaster@example.com").messages()) == 1


def test_a_notification_survives_a_restart_and_comes_once(tmp_path: Path) -> None:
    """250 after the dot is a promise: the sender hears what became of the message, once."""
    queue, store, nowhere = free_port(), free_port(), free_port()
    with running(tmp_path, queue, store, nowhere):
        replies = say(
            queue, "MAIL FROM:<joe@example.com>", "RCPT TO:<friend@a.example>", "RCPT TO:<x@a.example>", "DATA"
        )
    assert [code for code, _ in replies] == [250, 250, 250, 354, 250]
    spool, joe = Maildir(tmp_path / "spool"), Maildir(tmp_path / "joe@example.com")
    assert (len(spool.messages()), len(joe.messages())) == (1, 0)
    # The store stands in for the inbound proxy: the sender carries no tag here.
    with running(tmp_path, queue, store, store):
        until(lambda: not spool.messages(), "empty spool")
    with running(tmp_path, queue, store, store):
        pass
    assert (len(spool.messages()), len(joe.messages())) == (0, 1)
    assert len(Maildir(tmp_path / "friend@a.example").messages()) == 1


def test_a_notification_that_nobody_takes_is_kept(tmp_path: Path) -> None:
    """It answers nobody and is lost to nobody: an administrator finds it."""
    queue, store = free_port(), free_port()
    with running(tmp_path, queue, store, store):
        say(queue, "MAIL FROM:<gone@example.com>", "RCPT TO:<x@a.example>", "DATA")
        until(Maildir(tmp_path / "undeliverable").messages, "undeliverable notification")
        until(lambda: not Maildir(tmp_path / "spool").messages(), "empty spool")


def test_mail_between_local_users_goes_through_the_inbound_side(tmp_path: Path) -> None:
    """A local recipient that does not exist bounces to the sender as any other."""
    queue, store = free_port(), free_port()
    joe = Maildir(tmp_path / "joe@example.com")
    with running(tmp_path, queue, store, store):
        say(queue, "MAIL FROM:<joe@example.com>", "RCPT TO:<nobody@example.com>", "DATA")
        (path,) = until(joe.messages, "notification")
    assert b"Status: 5.1.1" in path.read_bytes()


def test_a_message_that_cannot_be_written_is_not_taken(tmp_path: Path) -> None:
    """The client keeps what we cannot, and the next message goes through."""
    queue, store = free_port(), free_port()
    (tmp_path / "joe@example.com").write_text("in the way")
    with running(tmp_path, queue, store, store):
        letter = ("MAIL FROM:<a@b.example>", "RCPT TO:<joe@example.com>", "DATA")
        assert [code for code, _ in say(store, *letter)] == [250, 250, 354, 452]
        (tmp_path / "joe@example.com").unlink()
        assert [code for code, _ in say(store, *letter)] == [250, 250, 354, 250]


def test_the_private_names_of_aiosmtpd_are_there() -> None:
    """They are not promised: another release may lack them."""
    assert [name for name in next_hop.PRIVATE_NAMES if not hasattr(SMTP, name)] == []
