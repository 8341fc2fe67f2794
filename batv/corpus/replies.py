"""Messages with a null sender that no failed delivery caused: vacation notices, challenges, receipts, calendar answers.

Source: RFC 3834 (automatic replies), RFC 8098 (disposition notifications), RFC 5546 and 6047 (calendar answers).
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import TYPE_CHECKING, Final

from batv.corpus.dialects.report import begun, message_part, mixed, rendered, status_part, text_part
from batv.corpus.letters import boundary, date_text, token

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.corpus.dialects.report import Report

__all__ = ["AUTOMATIC"]


def _vacation(report: Report) -> bytes:
    message = _begin(report, f"Out of office: {report.letter.subject}")
    message["Auto-Submitted"] = "auto-replied (vacation)"
    message["Precedence"] = "bulk"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content("I am away until the 24th. In urgent cases, call my colleague.\n")
    return message.as_bytes()


def _challenge(report: Report) -> bytes:
    message = _begin(report, f"Please confirm your message ({token(report.rng, 12)})")
    message["Auto-Submitted"] = "auto-replied"
    message["X-Delivery-Agent"] = "TMDA/1.1.12 (Macallan)"
    message.set_content(
        f"Your message to {report.recipient} waits until you answer this one.\nYou need not write anything.\n"
    )
    return message.as_bytes()


def _receipt(report: Report) -> bytes:
    text = f"Your message to {report.recipient} was displayed.\nThat does not mean that it was read.\n"
    message = mixed(
        (
            ("Message-ID", f"<{report.message_id}@{report.host}>"),
            ("Date", date_text(report.now)),
            ("From", f"<{report.recipient}>"),
            ("To", report.to),
            ("Subject", "Read: your message"),
            ("References", report.letter.message_id),
            ("MIME-Version", "1.0"),
            ("Content-Type", ("multipart/report; report-type=disposition-notification;\n"
             f' boundary="{boundary(report.rng)}"')),
        ),
        (
            text_part(text),
            status_part(
                (
                    (("Reporting-UA", f"{report.host}; Mozilla Thunderbird"),
                     ("Final-Recipient", f"rfc822;{report.recipient}"),
                     ("Original-Message-ID", report.letter.message_id),
                     ("Disposition", "manual-action/MDN-sent-manually; displayed")),
                ),
                (("Content-Type", "message/disposition-notification"),),
            ),
            message_part(report.letter.octets),
        ),
    )  # fmt: skip
    return rendered(message)


def _calendar(report: Report) -> bytes:
    stamp = datetime.fromtimestamp(report.now, UTC).strftime("%Y%m%dT%H%M%SZ")
    answer = (
        "BEGIN:VCALENDAR\nPRODID:-//Example//Calendar 1.0//EN\nVERSION:2.0\nMETHOD:REPLY\nBEGIN:VEVENT\n"
        f"UID:{token(report.rng, 20)}\nDTSTAMP:{stamp}\nDTSTART:{stamp}\n"
        f"ATTENDEE;PARTSTAT=ACCEPTED:mailto:{report.recipient}\nSUMMARY:Meeting\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    message = _begin(report, f"Accepted: {report.letter.subject}")
    message["Auto-Submitted"] = "auto-replied"
    message.set_content("Accepted.\n")
    part = EmailMessage(policy=SMTP)
    part.set_content(answer, subtype="calendar", params={"method": "REPLY"})
    del part["MIME-Version"]
    message.make_alternative(boundary(report.rng))
    message.attach(part)
    return message.as_bytes()


def _list(report: Report) -> bytes:
    message = _begin(report, "Your message awaits moderator approval")
    message["List-Id"] = f"<talk.{report.host}>"
    message["Precedence"] = "bulk"
    message["X-Mailman-Version"] = "2.1.39"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("Your mail to the list is held until the moderator has looked at it.\n")
    return message.as_bytes()


def _begin(report: Report, subject: str) -> EmailMessage:
    message = begun(report, f"<{report.recipient}>", subject)
    message["In-Reply-To"] = report.letter.message_id
    return message


AUTOMATIC: Final[dict[str, Callable[[Report], bytes]]] = {
    "vacation": _vacation,
    "challenge": _challenge,
    "receipt": _receipt,
    "calendar": _calendar,
    "list": _list,
}
"""What writes each kind of automatic reply."""
