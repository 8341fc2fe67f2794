"""Texts that no standard covers: old gateways, appliances, home-made scripts. Checked against real ones.

Some of them send bare line feeds, which Postfix and others have let pass for decades.
"""

from __future__ import annotations

from typing import Final

from batv.corpus.dialects.report import Action, Dialect, Report, plain, rendered, whole_text
from batv.corpus.letters import date_text

__all__ = ["PLAIN"]


def _write(report: Report) -> bytes:
    subject, sender, text = report.rng.choice(_FORMS)
    values = {
        "recipient": report.recipient,
        "host": report.host,
        "domain": report.host.partition(".")[2],
        "reply": report.reply,
        "copy": whole_text(report.letter.octets),
    }
    message = plain(
        (
            ("Message-Id", f"<{report.message_id}@{report.host}>"),
            ("From", sender.format(**values)),
            ("To", report.to),
            ("Date", date_text(report.now)),
            ("Subject", subject.format(**values)),
        ),
        text.format(**values),
    )
    octets = rendered(message)
    if report.rng.random() < 0.2:  # noqa: PLR2004 -- one in five
        header, _, body = octets.partition(b"\r\n\r\n")
        octets = header + b"\r\n\r\n" + body.replace(b"\r\n", b"\n")
    return octets


_FORMS: Final = (
    (
        "Delivery failure",
        "MAILER-DAEMON@{domain}",
        (
            "Message from {domain}.\nUnable to deliver message to the following address(es).\n\n<{recipient}>:\n"
            "This user doesn't have a {domain} account ({recipient}) [-9]\n\n--- Original message follows.\n\n{copy}"
        ),
    ),
    (
        "Returned mail: User's mailbox is full",
        "MAILER-DAEMON@{host}",
        "User's mailbox is full: <{recipient}>\nUnable to deliver mail.\n\n",
    ),
    (
        "Your message : non remis (delivery failed)",
        "postmaster@{domain}",
        (
            "***********************************************\nVotre message n'a pas pu etre delivre a\n{recipient}\n\n"
            "***********************************************\nYour message could not be delivered to\n{recipient}\n\n"
        ),
    ),
    (
        "Undeliverable Mail",
        '"Postmaster" <postmaster@{domain}>',
        "Unknown user: {recipient}\n\n{reply}\n\nOriginal message follows.\n\n{copy}",
    ),
)
"""Subject, From and text."""

PLAIN: Final = Dialect("plain", frozenset((Action.FAILED,)), _write)
"""Whatever a machine may say."""
