"""qmail: no MIME, one text; and Haraka, whose text is modelled on it, as the first part of a delivery report.

qmail's form is D. J. Bernstein's QSBMF. Its messages end their lines with LF until qmail-remote sends them.
Both are checked against real ones. Haraka's is that of an installation with Haraka's template for bounces and not its
template with HTML; Haraka reports failures only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final
from uuid import UUID

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Report,
    headers_part,
    mixed,
    plain,
    rendered,
    status_part,
    text_part,
    whole_text,
)

__all__ = ["HARAKA", "QMAIL"]


def _qmail(report: Report) -> bytes:
    date = _date(report.now)
    text = (
        f"Hi. This is the qmail-send program at {report.host}.\n"
        "I'm afraid I wasn't able to deliver your message to the following addresses.\n"
        "This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
        f"<{report.recipient}>:\n{report.remote_ip} does not like recipient.\n"
        f"Remote host said: {report.reply}\nGiving up on {report.remote_ip}.\n\n"
        "--- Below this line is a copy of the message.\n\n"
        f"Return-Path: <{report.to}>\n{whole_text(report.letter.octets)}"
    )
    message = plain(
        (
            ("Received", f"(qmail {report.rng.randrange(300, 32000)} invoked for bounce); {date}"),
            ("Date", date),
            ("From", f"MAILER-DAEMON@{report.host}"),
            ("To", report.to),
            ("Subject", "failure notice"),
            ("Message-ID", f"<{report.message_id}.qmail@{report.host}>"),
        ),
        text,
    )
    return rendered(message)


def _haraka(report: Report) -> bytes:
    date = format_datetime(datetime.fromtimestamp(report.now, UTC))
    identity = _uuid(report)
    text = (
        f"Hi. This is the Haraka Mailer program at {report.host}.\n"
        f"I'm afraid I wasn't able to deliver your message\n    \"{_ascii(report.letter.subject)}\"\n"
        "to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n"
        f"Intended Recipients: <{report.recipient}>\n"
        f"Failure Reason: Error: Some recipients failed: <{report.recipient}>\n\n"
        f"<{report.recipient}>: {report.reply}\n"
    )
    message = mixed(
        (
            ("Received", f"(Haraka outbound); {date}"),
            ("Received", f"(Haraka {report.rng.randrange(300, 32000)} invoked for bounce); {date}"),
            ("Date", date),
            ("From", f"MAILER-DAEMON@{report.host}"),
            ("To", f"<{report.to}>"),
            ("Auto-Submitted", "auto-replied"),
            ("Subject", "failure notice"),
            ("Message-Id", f"<{report.message_id}@{report.host}>"),
            ("Content-Type", f'multipart/report; report-type=delivery-status;\n    boundary="boundary_{identity}"'),
            ("References", report.letter.message_id),
        ),
        (
            text_part(text),
            status_part(
                (
                    (("Original-Envelope-Id", report.letter.message_id), ("Reporting-MTA", f"dns;{report.host}"),
                     ("Arrival-Date", format_datetime(datetime.fromtimestamp(report.letter.sent, UTC)))),
                    (("Final-Recipient", f"rfc822;{report.recipient}"), ("Action", "failed"),
                     ("Status", report.status), ("Remote-MTA", report.remote),
                     ("Diagnostic-Code", f"smtp;{report.reply}")),
                ),
                (("Content-type", "message/delivery-status"),),
            ),
            headers_part(report.letter.octets, (("Content-Description", "Undelivered Message Headers"),
                                                ("Content-Type", "text/rfc822-headers"))),
        ),
        "This is a MIME-encapsulated message.\n",
    )  # fmt: skip
    return rendered(message)


def _uuid(report: Report) -> str:
    return str(UUID(int=report.rng.getrandbits(128), version=4)).upper()


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _date(seconds: int) -> str:
    # The day of the month without a leading zero, no day of the week, and -0000: the zone is not told.
    when = datetime.fromtimestamp(seconds, UTC)
    return format_datetime(when.replace(tzinfo=None)).partition(", ")[2].lstrip("0")


QMAIL: Final = Dialect("qmail", frozenset((Action.FAILED,)), _qmail)
"""qmail 1.03 and netqmail."""

HARAKA: Final = Dialect("haraka", frozenset((Action.FAILED,)), _haraka)
"""Haraka."""
