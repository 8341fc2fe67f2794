"""Postfix: five kinds of report, three parts each.

Checked against reports that Postfix 3.7.11 made for the purpose, and older real ones.
"""

from __future__ import annotations

import textwrap
from typing import Final

from batv.corpus.dialects.report import (
    Action,
    Dialect,
    Report,
    encoded,
    header_text,
    message_part,
    mixed,
    rendered,
    returned,
    status_part,
)
from batv.corpus.letters import date_text, token

__all__ = ["POSTFIX"]

_SUBJECTS: Final = {
    Action.FAILED: "Undelivered Mail Returned to Sender",
    Action.DELAYED: "Delayed Mail (still being retried)",
    Action.RELAYED: "Successful Mail Delivery Report",
    Action.EXPANDED: "Successful Mail Delivery Report",
    Action.DELIVERED: "Successful Mail Delivery Report",
}

_FAILED: Final = """\
I'm sorry to have to inform you that your message could not
be delivered to one or more recipients. It's attached below.

For further assistance, please send mail to postmaster.

If you do so, please include this problem report. You can
delete your own text from the attached returned message.
"""
_DELAYED: Final = """\
####################################################################
# THIS IS A WARNING ONLY.  YOU DO NOT NEED TO RESEND YOUR MESSAGE. #
####################################################################

Your message could not be delivered for more than 4 hour(s).
It will be retried until it is 5 day(s) old.

For further assistance, please send mail to postmaster.

If you do so, please include this problem report. You can
delete your own text from the attached returned message.
"""
_DONE: Final = """\
Your message was successfully delivered to the destination(s)
listed below. If the message was delivered to mailbox you will
receive no further notifications. Otherwise you may still receive
notifications of mail delivery errors from other systems.
"""
_TEXTS: Final = {Action.FAILED: _FAILED, Action.DELAYED: _DELAYED}
_REMOTE: Final = frozenset((Action.FAILED, Action.RELAYED))
_QUEUE_SECONDS: Final = 5 * 86_400


def _write(report: Report) -> bytes:
    date = f"{date_text(report.now)} (UTC)"
    arrived = f"{date_text(report.letter.sent)} (UTC)"
    queue_id, bounce_id = token(report.rng, 10), token(report.rng, 10)
    said = _said(report)
    text = "\n".join(
        (
            f"This is the mail system at host {report.host}.\n",
            _TEXTS.get(report.action, _DONE),
            f"{'':19}The mail system\n",
            textwrap.fill(f"<{report.recipient}>: {said}", 79, subsequent_indent="    ", break_on_hyphens=False),
            "",
        )
    )
    about_message = (
        ("Reporting-MTA", f"dns; {report.host}"),
        ("X-Postfix-Queue-ID", queue_id),
        ("X-Postfix-Sender", f"rfc822; {report.to}"),
        ("Arrival-Date", arrived),
    )
    spoken_to = (("Remote-MTA", f"dns; {report.remote}"),) if report.action in _REMOTE else ()
    until = f"{date_text(report.letter.sent + _QUEUE_SECONDS)} (UTC)"
    about_recipient = (
        ("Final-Recipient", f"rfc822; {report.recipient}"),
        ("Original-Recipient", f"rfc822;{report.recipient}"),
        ("Action", report.action.value),
        ("Status", report.status),
        *spoken_to,
        ("Diagnostic-Code", _diagnostic(report, said)),
        *((("Will-Retry-Until", until),) if report.action is Action.DELAYED else ()),
    )
    octets = returned(report, f"(Postfix) with ESMTP id {queue_id}")
    if report.action is Action.FAILED:
        kind = (
            ("Content-Description", "Undelivered Message"),
            ("Content-Type", "message/rfc822"),
            ("Content-Transfer-Encoding", "7bit"),
        )
        original = message_part(octets, kind)
    else:
        description = "Undelivered Message Headers" if report.action is Action.DELAYED else "Message Headers"
        original = encoded(header_text(octets), "text/rfc822-headers", description)
    message = mixed(
        (
            ("Received", f"by {report.host} (Postfix)\n\tid {bounce_id}; {date}"),
            ("Date", date),
            ("From", f"Mail Delivery System <MAILER-DAEMON@{report.host}>"),
            ("Subject", _SUBJECTS[report.action]),
            ("To", report.to),
            ("Auto-Submitted", "auto-replied"),
            ("MIME-Version", "1.0"),
            (
                "Content-Type",
                f'multipart/report; report-type=delivery-status;\n\tboundary="{queue_id}.{report.now}/{report.host}"',
            ),
            ("Message-Id", f"<{report.message_id}.{bounce_id}@{report.host}>"),
            ("Content-Transfer-Encoding", "7bit"),
        ),
        (
            encoded(text, "text/plain; charset=utf-8", "Notification"),
            status_part(
                (about_message, about_recipient),
                (("Content-Description", "Delivery report"), ("Content-Type", "message/delivery-status")),
            ),
            original,
        ),
        "This is a MIME-encapsulated message.\n",
    )
    return rendered(message)


def _said(report: Report) -> str:
    host = f"{report.remote}[{report.remote_ip}]"
    match report.action:
        case Action.FAILED:
            return f"host {host} said: {report.reply} (in reply to RCPT TO command)"
        case Action.DELAYED:
            return f"connect to {host}:25: Connection timed out"
        case Action.EXPANDED:
            return "alias expanded"
        case Action.DELIVERED:
            return "delivery via virtual: delivered to maildir"
        case _:
            return f"delivery via {host}:25: {report.reply}"


def _diagnostic(report: Report, said: str) -> str:
    text = f"smtp; {report.reply}" if report.action in _REMOTE else f"X-Postfix; {said}"
    return "\n    ".join(textwrap.wrap(text, 62, break_on_hyphens=False))


POSTFIX: Final = Dialect("postfix", frozenset(Action), _write)
"""Postfix, since 2.3."""
