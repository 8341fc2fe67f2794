"""What a message with a null sender says that it answers: which message, and whom that was sent to.

Receipts, vacation notices, answers of calendars and some bounces have a null reverse path and go to the plain address
of a header, where no tag can be. Each names the message that it answers, and speaks of a party which that was sent to.
Both are read here; whether it is true is the sent ledger's matter.

A message is named by In-Reply-To, by the Original-Message-ID of a receipt, and by the Message-ID of an original that is
returned; never by the References or In-Reply-To of a returned original, which whoever forged that has chosen. A report
on delivery speaks of its Final- and Original-Recipients, a receipt or an automatic reply of who stands in its From, or
of anybody in that one's domain: people answer from another address than the one they were written to.

Bounces of old servers have no parts that a program could read. Of such a text all Message-IDs at line starts count, and
all addresses before the copy of the original begins. That lets nobody through who could not write a proper report.

MIME is taken apart by hand: the standard library's parser takes time that grows with the square of what a hostile
message holds, and nests as deep as that wants. Here every octets cost linear time, and none raise an error.

Source: RFC 3461 to 3464 (reports on delivery); RFC 8098 sections 3.1 and 3.2; RFC 3834 section 3.1; RFC 6047; RFC 6522;
RFC 5322 section 3.6.4; RFC 2046 section 5.1.1; RFC 6376 section 3.5 for the domain of a signature.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "ANSWERED",
    "FIRST_PART_OCTETS",
    "IN_OUR_NAME",
    "NO_CLAIMS",
    "Claims",
    "Found",
    "Kind",
    "addresses_in",
    "claims_of",
    "message_ids_in",
]

FIRST_PART_OCTETS: Final = 262_144
"""So much of a message is looked at. What names the original stands before it, or is the head of it."""

_MAX_IDS: Final = 8
_MAX_PARTIES: Final = 32
_MAX_PARTS: Final = 32
_MAX_DEPTH: Final = 4
"""Of parts within parts: a report that a list or a scanner has wrapped has two."""

_VALUE_OCTETS: Final = 4096
_TEXT_OCTETS: Final = 16_384

# A field begins a line; white space before the colon is obsolete syntax. Every repetition is bounded or possessive.
_FIELD = re.compile(rb"([!-9;-~]{1,76}+)[ \t]*+:([^\r\n]*+)")
_FOLD = re.compile(rb"\r\n[ \t]++")
# Twice what RFC 2046 section 5.1.1 lets a boundary have, and then some.
_BOUNDARY = re.compile(rb"(?i);[ \t]*+boundary[ \t]*+=[ \t]*+(?:\"([^\"]{1,200}+)\"|([^\s;\"]{1,200}+))")
_REPORT_TYPE = re.compile(rb"(?i);[ \t]*+report-type[ \t]*+=[ \t]*+\"?([a-z0-9.-]{1,76}+)")
_REPLY_METHOD = re.compile(rb"(?i)method[ \t]*+[=:][ \t]*+\"?reply\b")
_DAEMON = re.compile(rb"(?i)\b(?:mailer-daemon|postmaster)@")
_DKIM_DOMAIN = re.compile(rb"(?:^|;)[ \t]*+d[ \t]*+=[ \t]*+([0-9A-Za-z_.\x80-\xff-]{1,255}+)")
_BRACKETED = re.compile(rb"<([^<>]{1,998}+)>")
_SPACE = re.compile(rb"\s++")
_STATUS_RECIPIENT = re.compile(rb"(?im)^(?:final|original)-recipient[ \t]*+:([^\r\n]*+)")
_STATUS_ORIGINAL_ID = re.compile(rb"(?im)^original-message-id[ \t]*+:([^\r\n]*+)")
# In texts copies are quoted, or indented.
_TEXT_MESSAGE_ID = re.compile(rb"(?im)^[> \t]{0,8}+message-id[ \t]*+:([^\r\n]{1,998}+)")
_TEXT_COPY = re.compile(rb"(?im)^[> \t]{0,8}+(?:return-path|received|message-id|from|date|subject|to)[ \t]*+:")
# No local part begins in the middle of one, so that a long word is looked at once.
_WORD = rb"[^\x00-\x20\"(),:;<>@\[\\\]\x7f]"
_ADDRESS = re.compile(
    rb"(?<!" + _WORD + rb")(?:" + _WORD + rb'{1,64}+|"(?:[^"\\\r\n]|\\.){1,64}+")@'
    rb"(?:[0-9A-Za-z_.\x80-\xff-]{1,255}+|\[[!-Z^-~]{1,255}+\])"
)

_STATUS: Final = frozenset({b"message/delivery-status", b"message/global-delivery-status"})
_RECEIPT: Final = frozenset({b"message/disposition-notification", b"message/global-disposition-notification"})
_RETURNED: Final = frozenset(
    {
        b"message/rfc822",
        b"message/rfc822-headers",
        b"message/global",
        b"message/global-headers",
        b"text/rfc822",
        b"text/rfc822-headers",
    }
)


class Kind(Enum):
    """What a message with a null sender is."""

    DSN = "dsn"  # a report on delivery
    MDN = "mdn"  # a receipt
    CALENDAR = "calendar"  # an answer to an invitation
    AUTO_REPLY = "auto-reply"  # a vacation notice, a challenge
    OTHER = "other"  # anything else, bounces of old servers too

    def __str__(self) -> str:
        """Return the word of the kind."""
        return self.value


@dataclass(frozen=True, slots=True)
class Claims:
    """What a message says of the one that it answers.

    Attributes:
        kind: what it is.
        message_ids: the message's, without brackets; more than one where it names several.
        parties: whom that was sent to: addresses, and `@domain` for anybody there. One of them must be right.
        origins: domains that a returned original bears, in its Message-ID and its DKIM signatures. Anybody can write
            them there.
    """

    kind: Kind
    message_ids: tuple[bytes, ...] = ()
    parties: tuple[bytes, ...] = ()
    origins: tuple[bytes, ...] = ()


NO_CLAIMS: Final = Claims(Kind.OTHER)
"""What a message claims that was not looked at."""


ANSWERED: Final = "answers a message on the ledger"
"""In the reason of a decision about a message of which the ledger knows what it answers."""

IN_OUR_NAME: Final = "returns mail in the name of"
"""In the reason of one about a message that the ledger knows nothing of; a domain of ours follows."""


class Found(Enum):
    """What the sent ledger knows of what a message claims."""

    KNOWN = "on the ledger"  # this recipient sent such a message to such a party
    UNKNOWN = "answers nothing that this recipient has sent"
    CLAIMS_NOTHING = "names no message that it answers"
    TOO_MANY = "too many answers to this recipient today (max_rescues)"
    UNREADABLE = "the ledger cannot be asked"

    def __str__(self) -> str:
        """Return a clause for the journal."""
        return self.value


class _Part(NamedTuple):
    """A part of a message that has no parts: its type in lower case, its fields by name, its decoded content."""

    type: bytes
    fields: Mapping[bytes, list[bytes]]
    body: bytes


def message_ids_in(value: bytes) -> tuple[bytes, ...]:
    """Return the ids that a field names, without brackets; one without brackets where it has no other."""
    value = value[:_VALUE_OCTETS]
    found = [_SPACE.sub(b"", match) for match in _BRACKETED.findall(value)[:_MAX_IDS]]
    if not found:
        bare = value.strip().strip(b"<>")
        found = [bare] if not _SPACE.search(bare) else []
    return tuple(each for each in dict.fromkeys(found) if each)


def addresses_in(value: bytes, most: int = _MAX_PARTIES) -> tuple[bytes, ...]:
    """Return what looks like addresses in a text, at most so many, as written."""
    found: dict[bytes, None] = {}
    for match in _ADDRESS.finditer(value):
        found[match[0].rstrip(b".")] = None
        if len(found) >= most:
            break
    return tuple(found)


def claims_of(octets: bytes) -> Claims:
    """Return what the first octets of a message claim; line ends are CRLF, dots are not stuffed."""
    octets = octets[:FIRST_PART_OCTETS]
    header, body = _head_and_body(octets)
    fields = _fields(header)
    parts = list(_parts(fields, body))
    kind = _kind(fields, parts)
    ids = list(message_ids_in(_first(fields, b"in-reply-to")))
    origins: list[bytes] = []
    for part in parts:
        if part.type in _RECEIPT:
            for value in _STATUS_ORIGINAL_ID.findall(_unfolded(part.body))[:_MAX_IDS]:
                ids += message_ids_in(value)
        elif part.type in _RETURNED:
            original = _fields(_head_and_body(part.body)[0])
            named = message_ids_in(_first(original, b"message-id"))
            ids += named
            origins += [domain.lower() for each in named if (domain := each.rpartition(b"@")[2])]
            for value in original.get(b"dkim-signature", [])[:_MAX_IDS]:
                origins += [match[1].lower() for match in _DKIM_DOMAIN.finditer(value[:_VALUE_OCTETS])][:1]
    if kind is Kind.DSN:
        parties = list(_status_recipients(parts))
    else:
        parties = []
        for address in addresses_in(_first(fields, b"from")[:_VALUE_OCTETS]):
            parties += (address, b"@" + address.rpartition(b"@")[2])
    if kind is Kind.OTHER:
        parties += addresses_in(_first(fields, b"x-failed-recipients")[:_VALUE_OCTETS])
        for part in parts:
            if part.type.startswith(b"text/plain"):
                found, named = _text_claims(part.body[:FIRST_PART_OCTETS])
                ids += found
                parties += named
    return Claims(kind, _first_of(ids, _MAX_IDS), _first_of(parties, _MAX_PARTIES), _first_of(origins, _MAX_IDS))


def _kind(fields: Mapping[bytes, list[bytes]], parts: Iterable[_Part]) -> Kind:
    types = {part.type for part in parts}
    if types & _STATUS:
        return Kind.DSN
    report = _REPORT_TYPE.search(_first(fields, b"content-type"))
    if types & _RECEIPT or (report is not None and report[1].lower() == b"disposition-notification"):
        return Kind.MDN
    for part in parts:
        if part.type == b"text/calendar" and (
            _REPLY_METHOD.search(_first(part.fields, b"content-type")) or _REPLY_METHOD.search(part.body)
        ):
            return Kind.CALENDAR
    automatic = (
        _first(fields, b"auto-submitted").strip().lower().startswith(b"auto-replied")
        or _first(fields, b"precedence").strip().lower() == b"auto_reply"
        or b"x-autoreply" in fields
        or b"x-autorespond" in fields
    )
    # Exim says auto-replied of its bounces.
    daemon = b"x-failed-recipients" in fields or _DAEMON.search(_first(fields, b"from")) is not None
    return Kind.AUTO_REPLY if automatic and not daemon else Kind.OTHER


def _status_recipients(parts: Iterable[_Part]) -> Iterator[bytes]:
    for part in parts:
        if part.type in _STATUS:
            for value in _STATUS_RECIPIENT.findall(_unfolded(part.body))[:_MAX_PARTIES]:
                yield from addresses_in(value.partition(b";")[2] or value, 1)


def _text_claims(text: bytes) -> tuple[list[bytes], tuple[bytes, ...]]:
    """Return the ids and the addresses that the bounce of an old server names."""
    text = _unfolded(text)
    ids: list[bytes] = []
    for match in _TEXT_MESSAGE_ID.finditer(text):
        ids += message_ids_in(match[1])
        if len(ids) >= _MAX_IDS:
            break
    copy = _TEXT_COPY.search(text)
    return ids, addresses_in(text[: copy.start() if copy is not None else len(text)][:_TEXT_OCTETS])


def _first_of(found: Iterable[bytes], most: int) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(found))[:most]


# Messages and their parts.


def _parts(fields: Mapping[bytes, list[bytes]], body: bytes) -> Iterator[_Part]:
    """Yield the parts that have none, in their order; a broken multipart is a text."""
    pending = [(fields, body, 0)]
    left = _MAX_PARTS
    while pending and left:
        fields, body, depth = pending.pop()
        content_type = _first(fields, b"content-type")
        kind = content_type.partition(b";")[0].strip().lower() or b"text/plain"
        boundary = _BOUNDARY.search(content_type) if kind.startswith(b"multipart/") else None
        inner: list[bytes] = []
        if boundary is not None and depth < _MAX_DEPTH:
            inner = _split(body, boundary[1] or boundary[2])
        if not inner:
            left -= 1
            yield _Part(b"text/plain" if kind.startswith(b"multipart/") else kind, fields, _decoded(fields, body))
            continue
        found = []
        for piece in inner:
            header, content = _head_and_body(piece)
            found.append((_fields(header), content, depth + 1))
        pending += reversed(found)


def _split(body: bytes, boundary: bytes) -> list[bytes]:
    """Return what stands between the lines of a boundary; the last piece may lack its end."""
    pattern = re.compile(rb"(?m)^--" + re.escape(boundary) + rb"(--)?+[ \t]*+(?:\r\n|\Z)")
    pieces: list[bytes] = []
    begin = None
    for match in pattern.finditer(body):
        if begin is not None:
            pieces.append(body[begin : match.start()].removesuffix(b"\r\n"))
        begin = None if match[1] is not None else match.end()
        if begin is None or len(pieces) >= _MAX_PARTS:
            return pieces
    if begin is not None:
        pieces.append(body[begin:])
    return pieces


def _head_and_body(octets: bytes) -> tuple[bytes, bytes]:
    if octets.startswith(b"\r\n"):
        return b"", octets[2:]
    head, _, body = octets.partition(b"\r\n\r\n")
    return head, body


def _fields(header: bytes) -> dict[bytes, list[bytes]]:
    """Return the fields of a header, unfolded, by their names in lower case."""
    fields: dict[bytes, list[bytes]] = {}
    for line in _unfolded(header).split(b"\r\n"):
        match = _FIELD.match(line)
        if match is not None:
            fields.setdefault(match[1].lower(), []).append(match[2])
    return fields


def _first(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    return fields[name][0] if name in fields else b""


def _unfolded(octets: bytes) -> bytes:
    return _FOLD.sub(b" ", octets)


def _decoded(fields: Mapping[bytes, list[bytes]], body: bytes) -> bytes:
    """Return what a part holds, with line ends CRLF; what cannot be decoded stays as it is."""
    encoding = _first(fields, b"content-transfer-encoding").strip().lower()
    if encoding == b"base64":
        # What was cut off at the end of the first part may leave a group that is not whole.
        letters = _SPACE.sub(b"", body)
        try:
            body = binascii.a2b_base64(letters[: len(letters) // 4 * 4])
        except binascii.Error:
            return body
    elif encoding == b"quoted-printable":
        body = binascii.a2b_qp(body)
    else:
        return body
    return body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
