"""OpenSMTPD: all kinds of report but expansions, in the tone of a letter. Checked against real ones.

This is 6.8. One that is in shared corpora is older and writes `error` where this writes `failed`.
"""

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
_ACTIONS: Final = (Action.FAILED, Action.DELAYED, Action.RELAYED, Action.DELIVERED)

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

    Please note that this is only a temporary failure report.
    The message is kept in the queue for up to 4 days.
    You DO NOT NEED to re-send the message to these recipients.

    Below is a copy of the original message:

"""
_DONE: Final = """\
    Hi!

    This is the MAILER-DAEMON, please DO NOT REPLY to this email.

    Your message was {how} these recipients.

{recipient}:\x20

    Below is a copy of the original message:

"""
_HOW: Final = {Action.RELAYED: "relayed to", Action.DELIVERED: "successfully delivered to"}
_TEXTS: Final = {Action.FAILED: _FAILED, Action.DELAYED: _DELAYED}


def _write(report: Report) -> bytes:
    queue_id = token(report.rng, 8, _HEX)
    date = f"{date_text(report.now)} (UTC)"
    text = _TEXTS.get(report.action, _DONE).format(
        recipient=report.recipient,
        reply=report.reply,
        how=_HOW.get(report.action),
    )
    message = mixed(
        (
            ("Received", (f"from localhost ({report.host} [local])\n\tby {report.host} (OpenSMTPD) with ESMTPA\n"
             f"\tid {queue_id}\n\tfor <{report.to}>;\n\t{date}")),
            ("Subject", f"Delivery status notification: {report.action.value}"),
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
                    (("Final-Recipient", f"rfc822; {report.recipient}"), ("Action", report.action.value),
                     ("Status", f"{report.status[0]}.0.0")),
                ),
                (("Content-Description", "Delivery Report"), ("Content-Type", "message/delivery-status")),
            ),
            headers_part(report.letter.octets, (("Content-Description", "Message headers"),
                                                ("Content-Type", "text/rfc822-headers"))),
        ),
        "This is a MIME-encapsulated message.\n",
    )  # fmt: skip
    return rendered(message)


OPENSMTPD: Final = Dialect("opensmtpd", frozenset(_ACTIONS), _write)
"""OpenSMTPD."""
