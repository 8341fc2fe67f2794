"""Sendmail: all kinds of report but expansions, with the transcript of its session. Checked against real ones.

It reports an expansion by a list that has an owner as a delivery.
"""

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

__all__ = ["SENDMAIL"]

_LOWER: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SUBJECTS: Final = {
    Action.FAILED: "Returned mail: see transcript for details",
    Action.DELAYED: "Warning: could not send message for past 4 hours",
    Action.RELAYED: "Return receipt",
    Action.DELIVERED: "Return receipt",
}
_RETRY_SECONDS: Final = 5 * 86400
_AUTO: Final = {Action.FAILED: "failure", Action.DELAYED: "warning-timeout"}


_ACTIONS: Final = {
    Action.RELAYED: "relayed (to non-DSN-aware mailer)",
    Action.DELIVERED: "delivered (to mailbox)",
}
_WARNING: Final = """\
    **********************************************
    **      THIS IS A WARNING MESSAGE ONLY      **
    **  YOU DO NOT NEED TO RESEND YOUR MESSAGE  **
    **********************************************

"""
_DONE: Final = {
    Action.RELAYED: ("relayed to non-DSN-aware mailer", "relayed; expect no further notifications"),
    Action.DELIVERED: ("successfully delivered to mailbox", "Successfully delivered"),
}


def _write(report: Report) -> bytes:
    date = date_text(report.now)
    arrived = date_text(report.letter.sent)
    queue_id = token(report.rng, 14, _LOWER)
    delayed = report.action is Action.DELAYED
    text = (
        _WARNING if delayed else ""
    ) + f"The original message was received at {arrived}\nfrom localhost [127.0.0.1]\n\n{_text(report)}"
    client = () if delayed else (("Received-From-MTA", "DNS; localhost"),)
    about_recipient = (
        ("Final-Recipient", f"RFC822; {report.recipient}"),
        ("X-Actual-Recipient", f"rfc822; {report.recipient}"),
        ("Action", _ACTIONS.get(report.action, report.action.value)),
        ("Status", report.status),
        *_remote(report),
        ("Last-Attempt-Date", date),
        *_retry(report),
    )
    body_back = delayed or report.action is Action.FAILED
    message = mixed(
        (
            ("Received", ("from localhost (localhost)\n"
             f"\tby {report.host} (8.17.1.9/8.17.1.9/Debian-2+deb12u2) id {queue_id};\n\t{date}")),
            ("Date", date),
            ("From", f"Mail Delivery Subsystem <MAILER-DAEMON@{report.host}>"),
            ("Message-Id", f"<{report.message_id}.{queue_id}@{report.host}>"),
            ("To", f"<{report.to}>"),
            ("MIME-Version", "1.0"),
            ("Content-Type", ("multipart/report; report-type=delivery-status;\n"
             f'\tboundary="{queue_id}.{report.now}/{report.host}"')),
            ("Subject", _SUBJECTS[report.action]),
            ("Auto-Submitted", f"auto-generated ({_AUTO.get(report.action, 'return-receipt')})"),
        ),
        (
            text_part(text, ()),
            status_part(((("Reporting-MTA", f"dns; {report.host}"), *client, ("Arrival-Date", arrived)),
                         about_recipient)),
            message_part(report.letter.octets) if body_back else headers_part(report.letter.octets),
        ),
        "This is a MIME-encapsulated message\n",
    )  # fmt: skip
    return rendered(message)


def _remote(report: Report) -> Fields:
    spoken_to = (("Remote-MTA", f"DNS; {report.remote}"),)
    match report.action:
        case Action.DELIVERED:
            return ()
        case Action.DELAYED:
            return spoken_to
        case _:
            return (*spoken_to, ("Diagnostic-Code", f"SMTP; {report.reply}"))


def _retry(report: Report) -> Fields:
    until = (("Will-Retry-Until", date_text(report.letter.sent + _RETRY_SECONDS)),)
    return until if report.action is Action.DELAYED else ()


def _text(report: Report) -> str:
    match report.action:
        case Action.FAILED:
            return (
                "   ----- The following addresses had permanent fatal errors -----\n"
                f"<{report.recipient}>\n    (reason: {report.reply})\n\n"
                "   ----- Transcript of session follows -----\n"
                f"... while talking to {report.remote}.:\n>>> RCPT To:<{report.recipient}>\n<<< {report.reply}\n"
                f"550 5.1.1 <{report.recipient}>... User unknown\n"
            )
        case Action.DELAYED:
            return (
                "   ----- Transcript of session follows -----\n"
                f"<{report.recipient}>... Deferred: Connection timed out with {report.remote}.\n"
                "Warning: message still undelivered after 4 hours\nWill keep trying until message is 5 days old\n"
            )
        case _:
            what, end = _DONE[report.action]
            return (
                "   ----- The following addresses had successful delivery notifications -----\n"
                f"<{report.recipient}>  ({what})\n\n   ----- Transcript of session follows -----\n"
                f"<{report.recipient}>... {end}\n"
            )


SENDMAIL: Final = Dialect("sendmail", frozenset(_SUBJECTS), _write)
"""Sendmail, since 8.8."""
