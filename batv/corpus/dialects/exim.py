"""Exim: failures and delays, as a report of three parts.

Checked against reports that Exim 4.96 made for the purpose.
"""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Report,
    headers_part,
    message_part,
    mixed,
    rendered,
    returned,
    status_part,
    text_part,
)
from batv.corpus.letters import date_text, token

__all__ = ["EXIM"]

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_FAILED: Final = """\
This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  {recipient}
    host {remote} [{remote_ip}]
    SMTP error from remote mail server after RCPT TO:<{recipient}>:
    {reply}
"""
_DELAYED: Final = """\
This message was created automatically by mail delivery software.
A message that you sent has not yet been delivered to one or more of its
recipients after more than 24 hours on the queue on {host}.

The message identifier is:     {queue_id}
The date of the message is:    {date}
The subject of the message is: {subject}

The address to which the message has not yet been delivered is:

  {recipient}

No action is required on your part. Delivery attempts will continue for
some time, and this warning may be repeated at intervals if the message
remains undelivered. Eventually the mail delivery software will give up,
and when that happens, the message will be returned to you.
"""


def _write(report: Report) -> bytes:
    failed = report.action is Action.FAILED
    queue_id = "-".join(token(report.rng, length, _BASE62) for length in (6, 6, 2))
    date = date_text(report.now)
    boundary = f"{report.now}-eximdsn-{report.rng.randrange(10**9)}"
    text = (_FAILED if failed else _DELAYED).format(
        recipient=report.recipient,
        remote=report.remote,
        remote_ip=report.remote_ip,
        reply=report.reply.replace("rejected: ", "rejected:\n    "),
        host=report.host,
        queue_id=queue_id,
        subject=report.letter.subject.encode("ascii", "replace").decode(),
        date=date_text(report.letter.sent),
    )
    spoken = (("Remote-MTA", f"dns; {report.remote}"), ("Diagnostic-Code", f"smtp; {report.reply}")) if failed else ()
    octets = returned(report, f"with esmtp (Exim 4.96)\r\n\tid {queue_id}", "Return-path")
    about_recipient = (
        ("Action", report.action.value),
        ("Final-Recipient", f"rfc822;{report.recipient}"),
        ("Status", "5.0.0" if failed else "4.0.0"),
        *spoken,
    )
    parts = (
        text_part(text, (("Content-type", "text/plain; charset=us-ascii"),)),
        status_part(((("Reporting-MTA", f"dns; {report.host}"),), about_recipient),
                    (("Content-type", "message/delivery-status"),)),
        message_part(octets, (("Content-type", "message/rfc822"),))
        if failed
        else headers_part(octets, (("Content-type", "text/rfc822-headers"),)),
    )  # fmt: skip
    subject = (
        "Mail delivery failed: returning message to sender"
        if failed
        else f"Warning: message {queue_id} delayed 24 hours"
    )
    message = mixed(
        (
            ("Received", (f"from Debian-exim by {report.host} with local (Exim 4.96)\n\tid {queue_id}\n"
             f"\tfor {report.to};\n\t{date}")),
            *((("X-Failed-Recipients", report.recipient),) if failed else ()),
            ("Auto-Submitted", "auto-replied"),
            ("From", f"Mail Delivery System <Mailer-Daemon@{report.host}>"),
            ("To", report.to),
            ("References", report.letter.message_id),
            ("Content-Type", f"multipart/report; report-type=delivery-status; boundary={boundary}"),
            ("MIME-Version", "1.0"),
            ("Subject", subject),
            ("Message-Id", f"<E{queue_id}-{report.message_id}@{report.host}>"),
            ("Date", date),
        ),
        parts,
    )  # fmt: skip
    return rendered(message)


EXIM: Final = Dialect("exim", frozenset((Action.FAILED, Action.DELAYED)), _write)
"""Exim, since 4.83."""
