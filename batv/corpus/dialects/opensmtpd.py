"""OpenSMTPD: failures, delays and successes, in the tone of a letter. Checked against a real one."""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Report,
    headers_part,
    mixed,
    rendered,
    status_part,
    text_part,
)
from batv.corpus.letters import date_text, token

__all__ = ["OPENSMTPD"]

_HEX: Final = "0123456789abcdef"
_SUBJECTS: Final = {
    Action.FAILED: "Delivery status notification: error",
    Action.DELAYED: "Delivery status notification: delayed",
    Action.DELIVERED: "Delivery status notification: delivered",
}
_ACTIONS: Final = {Action.FAILED: "error", Action.DELAYED: "delayed", Action.DELIVERED: "delivered"}
"""What it writes into the field Action: `error` is none of the words of RFC 3464."""

_FAILED: Final = """\
    Hi!

    This is the MAILER-DAEMON, please DO NOT REPLY to this email.

    An error has occurred while attempting to deliver a message for
    the following list of recipients:

{recipient}: {reply}

    Below is a copy of the original message:

"""
_DELAYED: Final = """\
    Hi!

    This is the MAILER-DAEMON, please DO NOT REPLY to this email.

    A message is delayed for more than 4 hours for the following
    list of recipients:

{recipient}: Network error on destination MXs

    Below is a copy of the original message:

"""
_DONE: Final = """\
    Hi!

    This is the MAILER-DAEMON, please DO NOT REPLY to this email.

    Your message was successfully delivered to these recipients.

{recipient}: {reply}

    Below is a copy of the original message:

"""
_TEXTS: Final = {Action.FAILED: _FAILED, Action.DELAYED: _DELAYED, Action.DELIVERED: _DONE}


def _write(report: Report) -> bytes:
    queue_id = token(report.rng, 8, _HEX)
    date = f"{date_text(report.now)} (UTC)"
    text = _TEXTS[report.action].format(recipient=report.recipient, reply=report.reply)
    message = mixed(
        (
            ("Received", (f"from localhost ({report.host} [local])\n\tby {report.host} (OpenSMTPD) with ESMTPA\n"
             f"\tid {queue_id}\n\tfor <{report.to}>;\n\t{date}")),
            ("Subject", _SUBJECTS[report.action]),
            ("From", f"Mailer Daemon <MAILER-DAEMON@{report.host}>"),
            ("To", report.to),
            ("Date", date),
            ("MIME-Version", "1.0"),
            ("Content-Type", f'multipart/mixed;boundary="{report.rng.randrange(1 << 63)}/{report.host}"'),
            ("Message-ID", f"<{report.message_id}.{queue_id}@{report.host}>"),
        ),
        (
            text_part(text, (("Content-Description", "Notification"),
                             ("Content-Type", "text/plain; charset=us-ascii"))),
            status_part(
                (
                    (("Reporting-MTA", f"dns; {report.host}"),),
                    (("Final-Recipient", f"rfc822; {report.recipient}"), ("Action", _ACTIONS[report.action]),
                     ("Status", report.status)),
                ),
                (("Content-Description", "Delivery Report"), ("Content-Type", "message/delivery-status")),
            ),
            headers_part(report.letter.octets, (("Content-Description", "Message headers"),
                                                ("Content-Type", "text/rfc822-headers"))),
        ),
        "This is a MIME-encapsulated message.\n",
    )  # fmt: skip
    return rendered(message)


OPENSMTPD: Final = Dialect("opensmtpd", frozenset(_SUBJECTS), _write)
"""OpenSMTPD, since 5.9."""
