"""Mail that programs write and that answers nothing: notices, newsletters, lists, reports that are no bounces.

It has much in common with bounces and automatic replies, and must not be taken for one.

Source: RFC 3834 section 5 (auto-generated), RFC 2369 and 2919 (mailing lists), RFC 5965 (abuse reports), RFC 8460
(reports on TLS), RFC 8058 (newsletters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batv.corpus.dialects import DIALECTS
from batv.corpus.dialects.report import begun, mixed, rendered, text_part
from batv.corpus.letters import boundary, date_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import EmailMessage

    from batv.corpus.dialects.report import Report

__all__ = ["NOTICES"]


def _notice(report: Report) -> bytes:
    message = _begin(report, "Your order has shipped")
    message["Auto-Submitted"] = "auto-generated"
    message["Precedence"] = "bulk"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content("Your parcel is on its way. Please do not answer this message.\n")
    return message.as_bytes()


def _newsletter(report: Report) -> bytes:
    message = _begin(report, "Undeliverable? Not with our new parcel boxes")
    message["List-Unsubscribe"] = f"<https://{report.host}/leave?user=1>"
    message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message["Precedence"] = "bulk"
    message.set_content("This month: how a failure notice made us build a better box.\n")
    return message.as_bytes()


def _posted_bounce(report: Report) -> bytes:
    """Return a bounce that somebody's server has sent to a mailing list, as its subscribers get it."""
    dialect = DIALECTS[report.rng.randrange(len(DIALECTS))]
    octets = dialect.write(report) if report.action in dialect.actions else DIALECTS[0].write(report)
    return f"List-Id: <talk.{report.host}>\r\nPrecedence: list\r\n".encode() + octets


def _abuse_report(report: Report) -> bytes:
    text = "Feedback-Type: abuse\nUser-Agent: Example/1.0\nVersion: 1\n"
    return _other_report(report, "feedback-report", "message/feedback-report", text)


def _tls_report(report: Report) -> bytes:
    return _other_report(report, "tlsrpt", "application/tlsrpt+json", '{"policies": []}\n')


def _other_report(report: Report, kind: str, part: str, text: str) -> bytes:
    message = mixed(
        (
            ("Message-ID", f"<{report.message_id}@{report.host}>"),
            ("Date", date_text(report.now)),
            ("From", f"postmaster@{report.host}"),
            ("To", report.to),
            ("Subject", "Report"),
            ("MIME-Version", "1.0"),
            ("Content-Type", f'multipart/report; report-type={kind};\n boundary="{boundary(report.rng)}"'),
        ),
        (text_part("This is a report.\n"), text_part(text, (("Content-Type", part),))),
    )
    return rendered(message)


def _begin(report: Report, subject: str) -> EmailMessage:
    return begun(report, f"<no-reply@{report.host}>", subject)


NOTICES: Final[dict[str, Callable[[Report], bytes]]] = {
    "notice": _notice,
    "newsletter": _newsletter,
    "list": _posted_bounce,
    "abuse": _abuse_report,
    "tls": _tls_report,
}
"""What writes each kind."""
