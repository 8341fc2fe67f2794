"""Courier: failures, delays and successes. Not checked against a real one yet."""

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
    status_part,
    text_part,
)
from batv.corpus.letters import date_text, token

__all__ = ["COURIER"]

_SUBJECTS: Final = {
    Action.FAILED: "NOTICE: mail delivery status.",
    Action.DELAYED: "WARNING: delayed mail.",
    Action.RELAYED: "NOTICE: mail delivery status.",
    Action.DELIVERED: "NOTICE: mail delivery status.",
}
_FAILED: Final = """\
This is a delivery status notification from {host},
running the Courier mail server, version 1.0.16.

The original message was received on {arrived}
from {remote} ([{remote_ip}])

---------------------------------------------------------------------------

                           UNDELIVERABLE MAIL

Your message to the following recipients cannot be delivered:

<{recipient}>:
    {remote} [{remote_ip}]:
 >>> RCPT TO:<{recipient}>
 <<< {reply}

---------------------------------------------------------------------------

"""
_DELAYED: Final = """\
This is a delivery status notification from {host},
running the Courier mail server, version 1.0.16.

The original message was received on {arrived}
from {remote} ([{remote_ip}])

---------------------------------------------------------------------------

                           DELAYED MAIL

Your message to the following recipients has been delayed, and delivery
will be attempted again:

<{recipient}>:
    Connection timed out

---------------------------------------------------------------------------

"""
_DONE: Final = """\
This is a delivery status notification from {host},
running the Courier mail server, version 1.0.16.

The original message was received on {arrived}
from {remote} ([{remote_ip}])

---------------------------------------------------------------------------

                           DELIVERED MAIL

Your message to the following recipients was delivered:

<{recipient}>:
    {reply}

---------------------------------------------------------------------------

"""
_TEXTS: Final = {Action.FAILED: _FAILED, Action.DELAYED: _DELAYED}


def _write(report: Report) -> bytes:
    arrived = date_text(report.letter.sent)
    identity = token(report.rng, 16)
    text = _TEXTS.get(report.action, _DONE).format(
        host=report.host,
        arrived=arrived,
        remote=report.remote,
        remote_ip=report.remote_ip,
        recipient=report.recipient,
        reply=report.reply,
    )
    message = mixed(
        (
            ("Received", (f"from localhost (localhost [127.0.0.1])\n  (ftp://ftp.isi.edu/in-notes/rfc1894.txt)\n"
             f"  by {report.host} with dsn; {date_text(report.now)}\n  id {identity}")),
            ("From", f'"Courier mail server at {report.host}" <@>'),
            ("To", report.to),
            ("Subject", _SUBJECTS[report.action]),
            ("Mime-Version", "1.0"),
            ("Content-Type", ("multipart/report; report-type=delivery-status;\n"
             f'    boundary="=_courier-{identity}"')),
            ("Content-Transfer-Encoding", "7bit"),
            ("Message-ID", f"<courier.{report.message_id}@{report.host}>"),
            ("Date", date_text(report.now)),
        ),
        (
            text_part(text, (("Content-Transfer-Encoding", "7bit"),
                             ("Content-Type", "text/plain; charset=us-ascii"))),
            status_part(
                (
                    (("Reporting-MTA", f"dns; {report.host}"), ("Arrival-Date", arrived),
                     ("Received-From-MTA", f"dns; {report.remote} ([{report.remote_ip}])")),
                    (("Final-Recipient", f"rfc822; {report.recipient}"), ("Action", report.action.value),
                     ("Status", report.status), ("Diagnostic-Code", f"smtp; {report.reply}")),
                ),
                (("Content-Type", "message/delivery-status"), ("Content-Transfer-Encoding", "7bit")),
            ),
            message_part(report.letter.octets)
            if report.action is Action.FAILED
            else headers_part(report.letter.octets, (("Content-Type", "text/rfc822-headers; charset=us-ascii"),
                                                     ("Content-Transfer-Encoding", "7bit"))),
        ),
        "This is a MIME formatted message.  If you see this text it means that your\n"
        "mail software cannot handle MIME-formatted messages.\n",
    )  # fmt: skip
    return rendered(message)


COURIER: Final = Dialect("courier", frozenset(_SUBJECTS), _write)
"""Courier, the mail server."""
