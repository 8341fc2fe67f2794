"""What a bounce says, whoever words it; and the MIME parts that most of them are made of.

Parts are built with the standard library's email package, under its policy that leaves header fields as they are
written: the folding is part of a dialect.

Source: RFC 3462, RFC 3464 (delivery reports); RFC 2045, RFC 2046.
"""

from __future__ import annotations

from dataclasses import dataclass
from email import message_from_bytes
from email.generator import BytesGenerator
from email.message import EmailMessage, Message, MIMEPart
from email.policy import SMTP, compat32
from enum import Enum
from io import BytesIO
from typing import TYPE_CHECKING, Final

from batv.corpus.letters import date_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from batv.corpus.letters import Letter

__all__ = [
    "Action",
    "Dialect",
    "Fields",
    "Report",
    "begun",
    "encoded",
    "head",
    "header_text",
    "headers_part",
    "message_part",
    "mixed",
    "plain",
    "rendered",
    "returned",
    "status_part",
    "text_part",
    "whole_text",
]

_AS_WRITTEN: Final = compat32.clone(linesep="\r\n", max_line_length=None)

Fields = tuple[tuple[str, str], ...]
"""Header fields in their order: name and value, folded with LF and white space where the dialect folds."""


class Action(Enum):
    """What became of the message that a report is about. Source: RFC 3464 section 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"
    EXPANDED = "expanded"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True)
class Report:
    """What a bounce says.

    Attributes:
        rng: where all choices of wording come from.
        action: what became of the message.
        to: the address that the bounce goes to, as its header has it.
        recipient: the address that the message was for.
        letter: the message.
        host: the host that reports.
        remote: the host that it spoke to.
        remote_ip: its address.
        status: enhanced status code.
        reply: what the remote host answered, in one line.
        now: when it reports, POSIX seconds.
        message_id: local part of the report's Message-ID, unique in the corpus.
    """

    rng: Random
    action: Action
    to: str
    recipient: str
    letter: Letter
    host: str
    remote: str
    remote_ip: str
    status: str
    reply: str
    now: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one system words its reports.

    Attributes:
        name: of the system.
        actions: those that it reports.
        write: returns the message, line ends as the system sends them.
    """

    name: str
    actions: frozenset[Action]
    write: Callable[[Report], bytes]


def head(fields: Iterable[tuple[str, str]], part: Message | None = None) -> Message:
    """Return a message, or the part given, with header fields added."""
    message = part if part is not None else Message(policy=_AS_WRITTEN)
    for name, value in fields:
        message[name] = value
    return message


def text_part(text: str, fields: Fields = (("Content-Type", "text/plain; charset=us-ascii"),)) -> Message:
    """Return a text part; non-ASCII text and an encoding in the fields are the caller's to match."""
    part = head(fields)
    part.set_payload(text)
    return part


def plain(fields: Iterable[tuple[str, str]], text: str) -> Message:
    """Return a whole message that is a text."""
    message = head(fields)
    message.set_payload(text)
    return message


def status_part(
    blocks: Sequence[Iterable[tuple[str, str]]], fields: Fields = (("Content-Type", "message/delivery-status"),)
) -> Message:
    """Return the machine's part of a report: fields about the message, then fields for each recipient."""
    part = head(fields)
    for block in blocks:
        part.attach(head(block))
    return part


def message_part(octets: bytes, fields: Fields = (("Content-Type", "message/rfc822"),)) -> Message:
    """Return the message that came back, as a part."""
    part = head(fields)
    part.attach(message_from_bytes(octets, policy=_AS_WRITTEN))
    return part


def headers_part(octets: bytes, fields: Fields = (("Content-Type", "text/rfc822-headers"),)) -> Message:
    """Return the header of the message that came back, as a part."""
    part = head(fields)
    part.set_payload(header_text(octets))
    return part


def header_text(octets: bytes) -> str:
    """Return the header of a message as text, line ends LF."""
    return octets.partition(b"\r\n\r\n")[0].decode("utf-8", "replace").replace("\r\n", "\n") + "\n"


def whole_text(octets: bytes) -> str:
    """Return a message as text, line ends LF; what is not ASCII is escaped."""
    return octets.decode("ascii", "backslashreplace").replace("\r\n", "\n")


def mixed(fields: Iterable[tuple[str, str]], parts: Iterable[Message], preamble: str | None = None) -> Message:
    """Return a message of several parts; its fields give the type and the boundary."""
    message = head(fields)
    message.preamble = preamble
    for part in parts:
        message.attach(part)
    return message


def returned(report: Report, by: str, field: str = "Return-Path") -> bytes:
    """Return the message as it came to the host that sends it back: with its envelope's sender, and a line of trace.

    Args:
        report: the report.
        by: what the host says of itself and of the message's identifier, after its name.
        field: how it spells the field of the sender.
    """
    trace = (
        f"{field}: <{report.to}>\r\nReceived: from mail.{report.to.rpartition('@')[2]} (unknown [198.51.100.7])\r\n"
        f"\tby {report.host} {by}\r\n\tfor <{report.recipient}>; {date_text(report.letter.sent)}\r\n"
    )
    return trace.encode() + report.letter.octets


def encoded(text: str, kind: str, description: str = "") -> Message:
    """Return a text part in quoted-printable, as the library encodes it."""
    part = MIMEPart()
    part.set_content(text, subtype=kind.partition(";")[0].partition("/")[2], charset="us-ascii", cte="quoted-printable")
    described = (("Content-Description", description),) if description else ()
    found = head((*described, ("Content-Type", kind), ("Content-Transfer-Encoding", "quoted-printable")))
    found.set_payload(part.get_payload())
    return found


def begun(report: Report, author: str, subject: str) -> EmailMessage:
    """Return a message that is no report, about what a report tells of: the header that every message has."""
    message = EmailMessage(policy=SMTP)
    message["Date"] = date_text(report.now, report.rng)
    message["From"] = author
    message["To"] = f"<{report.to}>"
    message["Subject"] = subject
    message["Message-ID"] = f"<{report.message_id}@{report.host}>"
    return message


def rendered(message: Message, *, line_end: str = "\r\n") -> bytes:
    """Return the octets of a message."""
    octets = BytesIO()
    BytesGenerator(octets, mangle_from_=False, policy=_AS_WRITTEN).flatten(message, linesep=line_end)
    return octets.getvalue()
