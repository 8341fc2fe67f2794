"""What shows that a message with a sender is a bounce, or an automatic reply, all the same.

A bounce should have a null reverse path, and some servers give theirs a sender. It is known by that sender, or by its
header. An automatic reply (a vacation notice, a receipt) may have a sender, and is known by its header alone.

Nothing here is taken for a sign that ordinary mail has too: not `Auto-Submitted: auto-generated`, which is what shops,
trackers and calendars write of mail that answers nothing, nor `Precedence: bulk`, nor X-Auto-Response-Suppress, nor any
subject. A report of another type than these (on abuse, on TLS) is none, and neither is what a mailing list sends, whose
header may be that of a bounce that it was posted.

Source: RFC 3464 section 2; RFC 6522 section 3; RFC 8098 section 3; RFC 3834 section 5; RFC 2919; RFC 2142 section 5 for
postmaster. MAILER-DAEMON is sendmail's, X-Failed-Recipients Exim's, X-MS-Exchange-Message-Is-Ndr Exchange's.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final

from batv.smtp.header import PEEK_OCTETS, field_value, header_end
from batv.tag import tag_and_rest

if TYPE_CHECKING:
    from batv.address import Mailbox

__all__ = ["Clue", "clue_in", "clue_of_sender", "is_postmaster"]

_POSTMASTER: Final = b"postmaster"
_MAIL_SYSTEMS: Final = frozenset({b"mailer-daemon", _POSTMASTER})

# What stands in angle brackets, or the first word where nothing does; a name before it says nothing.
_AUTHOR = re.compile(rb"(?:[^<]*+<)?+[ \t]*+\"?(?:mailer-daemon|postmaster)\"?[ \t]*+(?:@|>|\(|\Z)")
_REPORT = re.compile(rb"\s*+(?:multipart/report\b|message/(?:global-)?(delivery-status|disposition-notification)\b)")
_REPORT_TYPE = re.compile(rb";\s*+report-type\s*+=\s*+\"?([a-z0-9.-]{1,76}+)")
_REPLIED = re.compile(rb"\s*+auto-replied\b")
_NO: Final = frozenset({b"", b"no", b"false"})


class Clue(Enum):
    """What shows that a message with a sender is a bounce or an automatic reply."""

    SENDER = "sender is a mail system"  # mailer-daemon@ or postmaster@
    AUTHOR = "From is a mail system"
    REPORT = "report on delivery"
    FAILED_RECIPIENTS = "X-Failed-Recipients"
    NDR = "X-MS-Exchange-Message-Is-Ndr"
    RETURN_PATH = "Return-Path: <>"  # it was a bounce before somebody sent it on
    RECEIPT = "receipt"
    REPLY = "automatic reply"

    def __str__(self) -> str:
        """Return a clause for the journal."""
        return self.value

    @property
    def bounce(self) -> bool:
        """Whether it is a bounce, not an answer that somebody wants to be given."""
        return self is not Clue.RECEIPT and self is not Clue.REPLY


def is_postmaster(mailbox: Mailbox | None) -> bool:
    """Whether an address is some domain's postmaster, with a tag or without."""
    return mailbox is not None and _user(mailbox) == _POSTMASTER


def clue_of_sender(mailbox: Mailbox | None) -> Clue | None:
    """Return what a reverse path shows; None for one that may be anybody's."""
    return Clue.SENDER if mailbox is not None and _user(mailbox) in _MAIL_SYSTEMS else None


def clue_in(octets: bytes) -> Clue | None:
    """Return what the header of a message shows, None where nothing; its first octets are enough, line ends CRLF."""
    octets = octets[:PEEK_OCTETS]
    end = header_end(octets)
    folded = b"\n" + (octets if end < 0 else octets[:end]).lower()
    if field_value(folded, b"\nlist-id"):
        return None
    content_type = field_value(folded, b"\ncontent-type")
    report = _REPORT.match(content_type)
    if report is not None:
        named = report if report[1] else _REPORT_TYPE.search(content_type)
        kind = named[1] if named is not None else b"delivery-status"
        return {b"delivery-status": Clue.REPORT, b"disposition-notification": Clue.RECEIPT}.get(kind)
    # Bounces before replies: Exim says auto-replied of its bounces.
    if field_value(folded, b"\nx-failed-recipients").strip():
        return Clue.FAILED_RECIPIENTS
    if b"\nx-ms-exchange-message-is-ndr:" in folded:  # it has no value
        return Clue.NDR
    if _AUTHOR.match(field_value(folded, b"\nfrom").replace(b"\r\n", b"")):
        return Clue.AUTHOR
    if (
        _REPLIED.match(field_value(folded, b"\nauto-submitted"))
        or field_value(folded, b"\nprecedence").strip() == b"auto_reply"
        or field_value(folded, b"\nx-autoreply").strip() not in _NO
        or field_value(folded, b"\nx-autorespond").strip() not in _NO
    ):
        return Clue.REPLY
    return Clue.RETURN_PATH if field_value(folded, b"\nreturn-path").strip() == b"<>" else None


def _user(mailbox: Mailbox) -> bytes:
    """Return the local part in lower case, without the tag that the sender's own site may have put on."""
    parts = tag_and_rest(mailbox)
    return (mailbox if parts is None else parts[1]).local.lower()
