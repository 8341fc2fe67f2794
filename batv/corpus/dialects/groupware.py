"""Lotus Domino and Novell GroupWise. Both are checked against real ones.

GroupWise's is that of 6.5 and 7.0: several parts by its type, of which there is one, and nothing of the message comes
back.
"""

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
    status_part,
    text_part,
)
from batv.corpus.letters import date_text, token

__all__ = ["DOMINO", "GROUPWISE"]


def _domino(report: Report) -> bytes:
    domain = report.host.partition(".")[2]
    reason = f"User {report.recipient.partition('@')[0]} ({report.recipient}) not listed in Domino Directory"
    subject = report.letter.subject.encode("ascii", "replace").decode()
    text = (
        f"Your message\n\n  Subject: {subject}\n\nwas not delivered to:\n\n  {report.recipient}\n\nbecause:\n\n"
        f"  {reason}\n\n"
    )
    server = f"MAIL{report.rng.randrange(10)}/{domain.partition('.')[0].upper()}"
    release = "Release 9.0.1FP10|January 30, 2018"
    identity = f"OF{token(report.rng, 8)}.{token(report.rng, 8)}-ON{token(report.rng, 8)}.{token(report.rng, 8)}"
    when = date_text(report.now)
    common = (
        ("MIME-Version", "1.0"),
        ("Subject", f"DELIVERY FAILURE: {reason}"),
        ("To", report.to),
        ("Date", when),
        ("From", f"Postmaster@{domain}"),
        ("X-MIMETrack", (f"Itemize by SMTP Server on {server}({release}) at\n\t{when},\n"
         f"\tSerialize by Router on {server}({release}) at {when},\n\tSerialize complete at {when}")),
        ("Message-ID", f"<{identity}-{report.message_id}@{domain}>"),
    )  # fmt: skip
    if report.rng.random() < 0.5:  # noqa: PLR2004 -- one half as a text, the other as a report
        return rendered(plain((*common, ("Content-Type", "Text/Plain")), text))
    boundary = f"==IFJRGLKFGIR{token(report.rng, 12)}UHRUHIHD"
    message = mixed(
        (*common, ("Content-Type", f'multipart/report; report-type=delivery-status; boundary="{boundary}"')),
        (
            text_part(text),
            status_part(
                (
                    (("Reporting-MTA", f"dns;{report.host}"),),
                    (("Final-Recipient", f"rfc822;{report.recipient}"), ("Action", report.action.value),
                     ("Status", report.status), ("Diagnostic-Code", f"X-Notes; {reason}")),
                )
            ),
            message_part(report.letter.octets),
        ),
    )  # fmt: skip
    return rendered(message)


def _groupwise(report: Report) -> bytes:
    reason = "user not found" if report.status.startswith("5.1") else report.reply
    text = f"The message that you sent was undeliverable to the following:\n\n\t{report.recipient} ({reason})\n\n"
    name = f"=__Part{token(report.rng, 8)}.{report.rng.randrange(10)}__="
    message = mixed(
        (
            ("Message-Id", f"<s{token(report.rng, 7).lower()}.{report.message_id}@{report.host}>"),
            ("X-Mailer", "Novell GroupWise Internet Agent 7.0.1 "),
            ("Date", date_text(report.now)),
            ("From", f"Mailer-Daemon@{report.host}"),
            ("To", report.to),
            ("Subject", "Message status - undeliverable"),
            ("Mime-Version", "1.0"),
            ("Content-Type", f'multipart/mixed; boundary="{name}"'),
        ),
        (
            text_part(text, (("Content-Type", "text/plain; charset=UTF-8"),
                             ("Content-Transfer-Encoding", "quoted-printable"),
                             ("Content-Disposition", "inline"))),
        ),
        "This is a MIME message. If you are reading this text, you may want to \n"
        "consider changing to a mail reader or gateway that understands how to \n"
        "properly handle MIME multipart messages.\n",
    )  # fmt: skip
    return rendered(message)


DOMINO: Final = Dialect("domino", frozenset((Action.FAILED,)), _domino)
"""Lotus Notes and Domino."""

GROUPWISE: Final = Dialect("groupwise", frozenset((Action.FAILED,)), _groupwise)
"""GroupWise Internet Agent."""
