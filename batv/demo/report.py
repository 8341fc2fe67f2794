"""Delivery status notifications: what a mail server sends to the reverse path of a message.

Source: RFC 3464 for the form, RFC 3461 for what the parameters RET, ENVID, NOTIFY and ORCPT ask for, RFC 6522 for
multipart/report, RFC 3834 for Auto-Submitted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.parser import BytesParser
from email.policy import compat32
from email.utils import format_datetime, make_msgid
from typing import TYPE_CHECKING

from batv.smtp.path import parameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from batv.smtp.path import MailArgument, RcptArgument

__all__ = ["Fate", "delivery_report"]

_XTEXT = re.compile(rb"\+([0-9A-F]{2})")
_HEADER_END = re.compile(rb"\r\n\r\n|\n\n")


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one recipient.

    Attributes:
        recipient: as the client named it, with its parameters.
        delivered: whether it has the message.
        status: enhanced status code. Source: RFC 3463.
        diagnostic: the SMTP reply that says so, in one line.
    """

    recipient: RcptArgument
    delivered: bool
    status: str
    diagnostic: str

    @property
    def wanted(self) -> bool:
        """Whether the sender asked to hear of it; without NOTIFY, of failures only. Source: RFC 3461 section 4.1."""
        notify = parameter(self.recipient.parameters, b"NOTIFY")
        wishes = b"FAILURE" if notify is None else notify.upper()
        return (b"SUCCESS" if self.delivered else b"FAILURE") in wishes.split(b",")


def delivery_report(
    sender: MailArgument, fates: Iterable[Fate], content: bytes, host: str, now: datetime
) -> bytes | None:
    """Return the notification of a message, with CRLF line ends; None if there is nobody to tell or nothing to say.

    Args:
        sender: reverse path and parameters of the message.
        fates: what became of its recipients.
        content: the message.
        host: name of the server that reports.
        now: the time to put in.
    """
    told = [fate for fate in fates if fate.wanted]
    if sender.path.mailbox is None or not told:
        return None
    delivered = all(fate.delivered for fate in told)
    report = MIMEMultipart("report")
    report.set_param("report-type", "delivery-status")
    report["Date"] = format_datetime(now)
    report["From"] = f"Mail Delivery System <MAILER-DAEMON@{host}>"
    report["To"] = _text(sender.path.mailbox.octets)
    report["Subject"] = "Delivered" if delivered else "Undelivered mail returned to sender"
    report["Message-ID"] = make_msgid(domain=host)
    report["Auto-Submitted"] = "auto-replied"
    report.attach(_words(told, host))
    report.attach(_status(sender, told, host))
    report.attach(_returned(sender, content))
    return report.as_bytes(policy=compat32.clone(linesep="\r\n"))


def _words(fates: Sequence[Fate], host: str) -> Message:
    lines = [f"This is the mail system at {host}.", ""]
    for fate in fates:
        outcome = "was delivered" if fate.delivered else "could not be delivered"
        lines.append(f"Your message to {_text(fate.recipient.path.octets)} {outcome}:")
        lines.append(f"    {fate.diagnostic}")
    text = "\n".join(lines) + "\n"
    return MIMEText(text, "plain", "us-ascii" if text.isascii() else "utf-8")


def _status(sender: MailArgument, fates: Sequence[Fate], host: str) -> Message:
    first = Message()
    first["Reporting-MTA"] = f"dns; {host}"
    envelope_id = parameter(sender.parameters, b"ENVID")
    if envelope_id:
        first["Original-Envelope-Id"] = _decoded(envelope_id)
    blocks: list[Message | str] = [first]  # as the stubs have it; they are messages all
    for fate in fates:
        block = Message()
        original = parameter(fate.recipient.parameters, b"ORCPT")
        if original:
            kind, _, address = original.partition(b";")
            block["Original-Recipient"] = f"{_text(kind)}; {_decoded(address)}"
        block["Final-Recipient"] = f"rfc822; {_text(fate.recipient.path.octets[1:-1])}"
        block["Action"] = "delivered" if fate.delivered else "failed"
        block["Status"] = fate.status
        block["Diagnostic-Code"] = f"smtp; {fate.diagnostic}"
        blocks.append(block)
    part = MIMEBase("message", "delivery-status")
    part.set_payload(blocks)
    return part


def _returned(sender: MailArgument, content: bytes) -> Message:
    """Return the part that brings the message back: all of it on RET=FULL, else its header."""
    if (parameter(sender.parameters, b"RET") or b"").upper() == b"FULL":
        whole = MIMEBase("message", "rfc822")
        whole.attach(BytesParser(policy=compat32).parsebytes(content))
        return whole
    header = _HEADER_END.split(content, maxsplit=1)[0].replace(b"\r\n", b"\n") + b"\n"
    part = MIMEBase("text", "rfc822-headers")
    if not header.isascii():
        part["Content-Transfer-Encoding"] = "8bit"
    part.set_payload(header.decode("ascii", "surrogateescape"))
    return part


def _decoded(xtext: bytes) -> str:
    """Return what an xtext stands for; itself where that is not printable. Source: RFC 3461 section 4."""
    octets = _XTEXT.sub(lambda match: bytes.fromhex(match[1].decode()), xtext)
    text = _text(octets)
    return text if text.isprintable() else _text(xtext)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
