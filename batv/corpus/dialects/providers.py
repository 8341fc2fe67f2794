"""Gmail and Yahoo: what large providers send. Checked against real ones."""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Report,
    message_part,
    mixed,
    plain,
    rendered,
    text_part,
    whole_text,
)
from batv.corpus.letters import date_text, token

__all__ = ["GMAIL", "YAHOO"]

_HEX: Final = "0123456789abcdef"


def _gmail(report: Report) -> bytes:
    domain = report.recipient.rpartition("@")[2]
    failed = report.action is Action.FAILED
    kind = "failed permanently" if failed else "has been delayed"
    error = "permanent failure" if failed else "temporary failure"
    text = (
        f"Delivery to the following recipient {kind}:\n\n     {report.recipient}\n\n"
        f"Technical details of {error}: \n"
        "Google tried to deliver your message, but it was rejected by the server for the recipient domain"
        f" {domain} by {report.remote}. [{report.remote_ip}].\n\n"
        f"The error that the other server returned was:\n{report.reply}\n\n"
        f"----- Original message -----\n\n{whole_text(report.letter.octets)}"
    )
    message = plain(
        (
            ("MIME-Version", "1.0"),
            ("Received", f"by 10.180.12.11 with SMTP id {token(report.rng, 16, _HEX)};\n {date_text(report.now)}"),
            ("From", "Mail Delivery Subsystem <mailer-daemon@googlemail.com>"),
            ("To", report.to),
            ("X-Failed-Recipients", report.recipient),
            ("Subject", f"Delivery Status Notification ({'Failure' if failed else 'Delay'})"),
            ("Message-ID", f"<{report.message_id}{token(report.rng, 20, _HEX)}@google.com>"),
            ("Date", date_text(report.now)),
            ("Content-Type", "text/plain; charset=ISO-8859-1"),
        ),
        text,
    )
    return rendered(message)


def _yahoo(report: Report) -> bytes:
    boundary = f"-=Part.{token(report.rng, 5, _HEX)}.{token(report.rng, 16, _HEX)}.{token(report.rng, 16, _HEX)}=-"
    text = (
        "Sorry, we were unable to deliver your message to the following address.\n\n"
        f"<{report.recipient}>:\n{report.reply[:3]}: {report.reply[4:]}\n\n"
        "---------- Forwarded message ----------\n"
    )
    host = "sonic303.consmr.mail.ne1.yahoo.com"
    message = mixed(
        (
            ("Received", f"from sonic.gate.mail.ne1.yahoo.com by {host} with HTTP; {date_text(report.now)}"),
            ("Date", date_text(report.now)),
            ("From", "MAILER-DAEMON@yahoo.com"),
            ("To", report.to),
            ("Message-ID", f"\n <{report.message_id}.{report.now}@{host}>"),
            ("Subject", "Failure Notice"),
            ("Content-Type", f'multipart/report; report-type=delivery-status;\n boundary="{boundary}"'),
        ),
        (
            text_part(text, (("Content-Type", "text/plain; charset=UTF-8"),)),
            message_part(report.letter.octets),
        ),
    )
    return rendered(message)


GMAIL: Final = Dialect("gmail", frozenset((Action.FAILED, Action.DELAYED)), _gmail)
"""Gmail, in the form that needs no reader of reports."""

YAHOO: Final = Dialect("yahoo", frozenset((Action.FAILED,)), _yahoo)
"""Yahoo, since 2021."""
