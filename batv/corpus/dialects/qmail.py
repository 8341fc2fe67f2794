"""qmail, and Haraka, whose text is modelled on it: no MIME, one text.

qmail's form is D. J. Bernstein's QSBMF. Its messages end their lines with LF until qmail-remote sends them.
qmail's is checked against real ones; Haraka's follows the template that it ships.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from batv.corpus.dialects.report import Action, Dialect, Report, plain, rendered, whole_text

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
    text = (
        f"Hi. This is the Haraka Mailer program at {report.host}.\n"
        "I'm afraid I wasn't able to deliver your message to the following addresses.\n"
        "This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
        f"Intended Recipients: <{report.recipient}>\nFailure Reason: {report.reply}\n\n"
        f"{whole_text(report.letter.octets)}"
    )
    message = plain(
        (
            ("Received", f"(Haraka {report.rng.randrange(300, 32000)} invoked for bounce); {date}"),
            ("Date", date),
            ("From", f"MAILER-DAEMON@{report.host}"),
            ("To", report.to),
            ("Subject", "failure notice"),
            ("Message-Id", f"<{report.message_id}@{report.host}>"),
        ),
        text,
    )
    return rendered(message)


def _date(seconds: int) -> str:
    # The day of the month without a leading zero, no day of the week, and -0000: the zone is not told.
    when = datetime.fromtimestamp(seconds, UTC)
    return format_datetime(when.replace(tzinfo=None)).partition(", ")[2].lstrip("0")


QMAIL: Final = Dialect("qmail", frozenset((Action.FAILED,)), _qmail)
"""qmail 1.03 and netqmail."""

HARAKA: Final = Dialect("haraka", frozenset((Action.FAILED,)), _haraka)
"""Haraka."""
