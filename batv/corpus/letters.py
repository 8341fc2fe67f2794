"""Ordinary mail, and the letters that bounces answer: texts, encodings, parts and line ends as people's programs have.

Source: RFC 5322; RFC 2045 to 2047; RFC 5545 for calendar parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

__all__ = ["Letter", "boundary", "date_text", "letter", "ordinary", "token"]

SUBJECTS: Final = (
    "Minutes of Monday's meeting", "Invoice 4711", "Re: the broken pump", "Lunch?", "Your order has shipped",
    "Quarterly figures, second draft", "[list] patch for the parser", "Fwd: photos", "Grüße aus Köln", "日程の確認",
    "A rather long subject that goes on and on so that whoever writes it has to fold it over two lines of the header",
)  # fmt: skip
_SENTENCES: Final = (
    "Thank you for your letter.", "The figures are attached.", "We meet at ten in the small room.",
    "Please let me know by Friday.", "It rained all week.", "The pump is running again.", "Nobody was hurt.",
    "See the list below.", "I have moved the date.", "Bring your own cup.", ".", "..", "From here it is two miles.",
)  # fmt: skip
_AGENTS: Final = ("Mutt/2.2.9 (2022-11-12)", "Mozilla Thunderbird", "Apple Mail (2.3774.300.61.1.2)", "KMail/5.22.3")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that somebody sent.

    Attributes:
        octets: the message, line ends CRLF.
        subject: its subject as text.
        message_id: with its angle brackets.
        sent: when, POSIX seconds.
    """

    octets: bytes
    subject: str
    message_id: str
    sent: int


def token(rng: Random, length: int, alphabet: str = "0123456789ABCDEF") -> str:
    """Return that many characters of an alphabet."""
    return "".join(rng.choices(alphabet, k=length))


def boundary(rng: Random) -> str:
    """Return a boundary that stands in no text of ours."""
    return f"=_{token(rng, 24)}"


def date_text(seconds: int, rng: Random | None = None) -> str:
    """Return a time as a header has it; in a zone of the generator's choice, else in UTC."""
    zone = UTC if rng is None else timezone(timedelta(minutes=rng.choice((-480, -300, 0, 60, 120, 330, 540))))
    return format_datetime(datetime.fromtimestamp(seconds, zone))


def letter(rng: Random, sender: str, recipient: str, sent: int) -> Letter:
    """Return a short letter from one address to another.

    Args:
        rng: where all choices come from.
        sender: the header address of the sender.
        recipient: that of the recipient.
        sent: when, POSIX seconds.
    """
    message, subject = _message(rng, sender, recipient, sent)
    message.set_content(_text(rng, 3), charset="utf-8", cte="quoted-printable")
    return _letter(message, subject, sent)


def ordinary(rng: Random, sender: str, recipient: str, sent: int) -> Letter:
    """Return a letter of any kind that people send: plain, 8-bit, with parts, with odd line ends. As for `letter`."""
    message, subject = _message(rng, sender, recipient, sent)
    match rng.randrange(7):
        case 0:
            message.set_content(_text(rng, 5), charset="us-ascii", cte="7bit")
        case 1:
            message.set_content("Grüße, größer als sonst.\n" + _text(rng, 2), charset="utf-8", cte="8bit")
        case 2:
            message.set_content(_text(rng, 4), charset="utf-8", cte="base64")
        case 3:
            message.set_content(_text(rng, 2))
            message.add_alternative(f"<p>{rng.choice(_SENTENCES)}</p>\n", subtype="html")
            message.set_boundary(boundary(rng))
        case 4:
            message.set_content(_text(rng, 2))
            message.add_attachment(rng.randbytes(3000), maintype="application", subtype="pdf", filename="figures.pdf")
            message.set_boundary(boundary(rng))
        case 5:
            message.set_content(_text(rng, 1) + "x" * 900 + "\n", charset="us-ascii", cte="7bit")
        case _:
            # Forwarded by a program that knows no CRLF: bare line feeds in the body.
            message.set_content(_text(rng, 4), charset="us-ascii", cte="7bit")
            found = _letter(message, subject, sent)
            head, _, body = found.octets.partition(b"\r\n\r\n")
            body = body.replace(b"\r\n", b"\n", 3) if rng.random() < 0.5 else body  # noqa: PLR2004 -- half of them
            return Letter(head + b"\r\n\r\n" + body, subject, found.message_id, sent)
    return _letter(message, subject, sent)


def _message(rng: Random, sender: str, recipient: str, sent: int) -> tuple[EmailMessage, str]:
    message = EmailMessage(policy=SMTP)
    subject = rng.choice(SUBJECTS)
    domain = sender.rpartition("@")[2]
    message["Date"] = date_text(sent, rng)
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = subject
    message["Message-ID"] = f"<{token(rng, 16)}.{sent}@{domain}>"
    message["User-Agent"] = rng.choice(_AGENTS)
    return message, subject


def _letter(message: EmailMessage, subject: str, sent: int) -> Letter:
    return Letter(message.as_bytes(), subject, str(message["Message-ID"]), sent)


def _text(rng: Random, lines: int) -> str:
    return "".join(f"{rng.choice(_SENTENCES)}\n" for _ in range(lines))
