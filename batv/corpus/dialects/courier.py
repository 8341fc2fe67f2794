"""Courier: failures, delays and successes. Checked against real ones."""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Fields,
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
_RETRY_SECONDS: Final = 7 * 86400
_HEAD: Final = """
This is a delivery status notification from {host},
running the Courier mail server, version 1.0.16.

The original message was received on {arrived}
from {client}

---------------------------------------------------------------------------

"""
_FOOT: Final = """
---------------------------------------------------------------------------

If your message was also sent to additional recipients, their delivery
status is not included in this report.  You may or may not receive
other delivery status notifications for additional recipients.

The original message follows as a separate attachment.

"""
_FAILED: Final = """\
                           UNDELIVERABLE MAIL

Your message to the following recipients cannot be delivered:

<{recipient}>:
     {remote} [{remote_ip}]:
 >>> RCPT TO:<{recipient}>
 <<< {reply}
"""
_DELAYED: Final = """\
                     DELAYS IN DELIVERING YOUR MESSAGE

The delivery of the following E-mail message has been delayed.  This is an
advisory notice only; it is sent only to notify you about a temporary delay
in delivering your message.  You DO NOT need to do anything at this time.
Additional attempts to deliver your message will be made.  Some possible
reasons for this delay:

   * Network congestion or failure.

   * The destination mail server is temporarily off-line.

Diagnostic information is provided below for each recipient.  If copies of
this message were sent to additional recipients, deliveries to those
addresses are not included in this notice.  This is an advisory notice for
the following addresses only:

<{recipient}>:
 <<< Network is down
"""
_RELAYED: Final = """\
                   MESSAGE DELIVERED TO A MAIL GATEWAY

You requested a delivery acknowledgement (a return receipt) for the
following recipients of your E-mail message.  Unfortunately, your message
has been transferred to an intermediate mail gateway that is not capable
of generating delivery acknowledgements.

Unless your message is eventually returned as undeliverable, you may not
receive any further delivery notices for the following addresses:

<{recipient}>:
     {remote} [{remote_ip}]:
 >>> DATA
 <<< {reply}
"""
_DELIVERED: Final = """\
                    MESSAGE DELIVERED SUCCESSFULLY

Your E-mail requested a delivery notice/return receipt for the following
addresses:

<{recipient}>:
 <<< Message delivered.
"""
_TEXTS: Final = {
    Action.FAILED: _FAILED,
    Action.DELAYED: _DELAYED,
    Action.RELAYED: _RELAYED,
    Action.DELIVERED: _DELIVERED,
}


def _outcome(report: Report) -> Fields:
    match report.action:
        case Action.DELAYED:
            return (("Will-Retry-Until", date_text(report.letter.sent + _RETRY_SECONDS)),)
        case Action.DELIVERED:
            return (("Diagnostic-Code", "unknown; Message delivered."),)
        case _:
            return (
                ("Remote-MTA", f"dns; {report.remote} [{report.remote_ip}]"),
                ("Diagnostic-Code", f"smtp; {report.reply}"),
            )


def _write(report: Report) -> bytes:
    arrived = date_text(report.letter.sent)
    identity = token(report.rng, 16)
    client = f"mail.{report.to.rpartition('@')[2]} ([::ffff:198.51.100.7])"
    text = (_HEAD + _TEXTS[report.action] + _FOOT).format(
        host=report.host,
        arrived=arrived,
        client=client,
        remote=report.remote,
        remote_ip=report.remote_ip,
        recipient=report.recipient,
        reply=report.reply,
    )
    message = mixed(
        (
            ("Received", (f"from localhost (localhost [127.0.0.1])\n  (ftp://ftp.isi.edu/in-notes/rfc1894.txt)\n"
             f"  by {report.host} with dsn; {date_text(report.now)}\n  id {identity}")),
            ("From", "mailer-daemon@"),
            ("To", report.to),
            ("Subject", _SUBJECTS[report.action]),
            ("Mime-Version", "1.0"),
            ("Content-Type", ("multipart/report; report-type=delivery-status;\n"
             '    boundary="=_courier_0"')),
            ("Content-Transfer-Encoding", "7bit"),
            ("Message-ID", f"<courier.{report.message_id}@{report.host}>"),
            ("Date", date_text(report.now)),
        ),
        (
            text_part(text, (("Content-Transfer-Encoding", "7bit"),
                             ("Content-Type", 'text/plain; charset="utf-8"'))),
            status_part(
                (
                    (("Reporting-MTA", f"dns; {report.host}"), ("Arrival-Date", arrived),
                     ("Received-From-MTA", f"dns; {client}")),
                    (("Final-Recipient", f"rfc822; {report.recipient}"), ("Action", report.action.value),
                     ("Status", f"{report.status[0]}.0.0"), *_outcome(report)),
                ),
                (("Content-Type", "message/delivery-status"), ("Content-Transfer-Encoding", "7bit")),
            ),
            message_part(report.letter.octets, (("Content-Type", "message/rfc822"),
                                                ("Content-Transfer-Encoding", "7bit")))
            if report.action is Action.FAILED
            else headers_part(report.letter.octets, (("Content-Type", 'text/rfc822-headers; charset="utf-8"'),
                                                     ("Content-Transfer-Encoding", "7bit"))),
        ),
        "This is a MIME-formatted message.  If you see this text it means that your\n"
        "E-mail software does not support MIME-formatted messages.\n",
    )  # fmt: skip
    return rendered(message)


COURIER: Final = Dialect("courier", frozenset(_SUBJECTS), _write)
"""Courier, the mail server."""
