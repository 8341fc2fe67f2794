"""The tag in an address: its grammar, its two placements, put on and taken off. No key and no clock.

Grammar::

    loc-core  = tagged "=" local-part               ; prefix placement, the draft's
    extension = local-part "+" tagged               ; subaddress placement, batv-tools'
    tagged    = "prvs=" K DDD 6HEXDIG               ; the draft's scheme: three octets of an HMAC
              / "prvs2=" K DDD 10HEXDIG             ; the strong scheme: five octets
    K         = DIGIT                               ; key number
    DDD       = 3DIGIT                              ; expiry day modulo 1000

The strong scheme has a tag type of its own, so that whoever knows the draft's alone does not take its tags for wrong
ones. The tag type is case-insensitive and so are the hex digits. In a quoted local part the tag stands inside the
quotes. Tags are taken off one layer deep: what is left is any local part, one that starts with `=` or `prvs=` too.

Source: draft-levine-smtp-batv-01 sections 3 and 4; the strong scheme is our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from batv.address import MAX_LOCAL_PART_OCTETS, MAX_MAILBOX_OCTETS, Mailbox

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "STRONG_TAG_OCTETS",
    "SURELY_ROOM",
    "TAG_OCTETS",
    "ForeignForm",
    "Placement",
    "Scheme",
    "Tag",
    "Tagged",
    "foreign_form",
    "has_room",
    "looks_tagged",
    "put_on",
    "put_on_fields",
    "shorten",
    "tag_and_rest",
    "take_off",
]

TAG_OCTETS: Final = 16
"""What a tag adds to a local part in either placement: `prvs=` or `+prvs=`, ten characters, and `=` in the first."""

STRONG_TAG_OCTETS: Final = 21
"""What a tag of the strong scheme adds: a digit in its type and four more of signature."""

_LONGEST_LOCAL_PART: Final = MAX_LOCAL_PART_OCTETS - TAG_OCTETS
_LONGEST_LOCAL_PART_AND_DOMAIN: Final = MAX_MAILBOX_OCTETS - TAG_OCTETS - len("@")
_STRONG_SIGNATURE_DIGITS: Final = 10

SURELY_ROOM: Final = MAX_LOCAL_PART_OCTETS - STRONG_TAG_OCTETS
"""A mailbox that has no more octets than this has room for any tag."""

# The `2` of the type decides how many digits of signature follow.
_TAGGED = rb"[pP][rR][vV][sS](2)?=([0-9])([0-9]{3})([0-9a-fA-F]{6}(?(%d)[0-9a-fA-F]{4}))"
_PREFIX = re.compile(rb'("?)' + _TAGGED % 2 + rb"=(.+)", re.DOTALL)
_PREFIX_WITHOUT_USER = re.compile(_TAGGED % 1 + rb"=")
_PREFIX_TYPE = re.compile(rb'"?prvs2?=', re.IGNORECASE)
_EQUALS_SIGN: Final = ord("=")
_SUBADDRESS = re.compile(rb"\+" + _TAGGED % 1 + rb"\Z")


class Scheme(Enum):
    """How much of a signature a tag holds, and of what kind. Both are understood."""

    DRAFT = "draft"  # prvs=: HMAC-SHA1, 24 bits
    STRONG = "strong"  # prvs2=: HMAC-SHA256, 40 bits


class Placement(Enum):
    """Where a tag is written. Both are always understood."""

    PREFIX = "prefix"
    SUBADDRESS = "subaddress"


# An enum takes its time to find a member, so it is asked once.
_AS_PREFIX: Final = Placement.PREFIX
_AS_SUBADDRESS: Final = Placement.SUBADDRESS
_STRONG: Final = Scheme.STRONG


@dataclass(frozen=True, slots=True)
class Tag:
    """A well-formed tag.

    Attributes:
        key_number: 0 to 9.
        stamp: three digits, the expiry day modulo 1000.
        signature: lower-case hex digits: six, or ten in the strong scheme.
    """

    key_number: int
    stamp: bytes
    signature: bytes

    @property
    def octets(self) -> bytes:
        """The tag as `KDDDSSSSSS`, with ten digits of signature in the strong scheme."""
        return b"%d%b%b" % (self.key_number, self.stamp, self.signature)

    @property
    def scheme(self) -> Scheme:
        """How it was signed."""
        return Scheme.STRONG if len(self.signature) == _STRONG_SIGNATURE_DIGITS else Scheme.DRAFT

    def __repr__(self) -> str:
        """Return the tag without its signature: whoever has a whole one can have a bounce delivered."""
        return f"Tag({self.key_number}{self.stamp.decode()}******)"


@dataclass(frozen=True, slots=True)
class Tagged:
    """An address taken apart.

    Attributes:
        tag: the tag it carried.
        mailbox: the address without the tag.
        placement: where the tag stood.
    """

    tag: Tag
    mailbox: Mailbox
    placement: Placement


def put_on(mailbox: Mailbox, tag: Tag, placement: Placement) -> Mailbox:
    """Return the mailbox with a tag, such that `take_off` gives back both; `has_room` tells whether there is room.

    The placement is kept but for one local part: a prefix tag with no user after it always gets another prefix.
    """
    return put_on_fields(mailbox, tag.key_number, tag.stamp, tag.signature, placement)


def put_on_fields(mailbox: Mailbox, key_number: int, stamp: bytes, signature: bytes, placement: Placement) -> Mailbox:
    """Return what `put_on` does for the fields of a tag, for signers that need no Tag."""
    local = mailbox.local
    quoted = local[:1] == b'"'
    strong = len(signature) == _STRONG_SIGNATURE_DIGITS
    # `prvs=KDDDSSSSSS=` carries no tag, but a subaddress behind it would be read as the user of a prefix tag.
    if placement is _AS_PREFIX or _PREFIX_WITHOUT_USER.fullmatch(local):
        if quoted:
            form = b'"prvs2=%d%b%b=%b' if strong else b'"prvs=%d%b%b=%b'
            return Mailbox(form % (key_number, stamp, signature, local[1:]), mailbox.domain)
        form = b"prvs2=%d%b%b=%b" if strong else b"prvs=%d%b%b=%b"
        return Mailbox(form % (key_number, stamp, signature, local), mailbox.domain)
    if quoted:
        form = b'%b+prvs2=%d%b%b"' if strong else b'%b+prvs=%d%b%b"'
        return Mailbox(form % (local[:-1], key_number, stamp, signature), mailbox.domain)
    form = b"%b+prvs2=%d%b%b" if strong else b"%b+prvs=%d%b%b"
    return Mailbox(form % (local, key_number, stamp, signature), mailbox.domain)


def take_off(mailbox: Mailbox) -> Tagged | None:
    """Return the address taken apart, or None if it carries no well-formed tag.

    A prefix comes before a subaddress, and only one tag is taken off.
    """
    parts = tag_and_rest(mailbox)
    return None if parts is None else Tagged(*parts)


def tag_and_rest(mailbox: Mailbox) -> tuple[Tag, Mailbox, Placement] | None:
    """Return the fields of what `take_off` returns, for verifiers that need no Tagged: making one takes its time."""
    local = mailbox.local
    if _EQUALS_SIGN not in local:  # most addresses: what follows need not be tried
        return None
    match = _PREFIX.fullmatch(local)
    if match is not None:
        quote, _, number, stamp, signature, rest = match.groups()
        tag = Tag(int(number), stamp, signature.lower())
        return tag, Mailbox(quote + rest, mailbox.domain), _AS_PREFIX
    quoted = mailbox.quoted
    match = _SUBADDRESS.search(local, 0, len(local) - 1 if quoted else len(local))
    if match is None:
        return None
    rest = local[: match.start()]
    if quoted:
        # In `"a\+prvs=..."` the plus sign belongs to a quoted pair: taking it away would leave no quoted string.
        if (len(rest) - len(rest.rstrip(b"\\"))) % 2:
            return None
        rest += b'"'
    if not rest:
        return None
    _, number, stamp, signature = match.groups()
    return Tag(int(number), stamp, signature.lower()), Mailbox(rest, mailbox.domain), _AS_SUBADDRESS


def looks_tagged(mailbox: Mailbox) -> bool:
    """Whether the address starts like a prefix tag, well-formed or not.

    A `+prvs=` that no tag follows is an ordinary subaddress, so it does not count.
    """
    return _PREFIX_TYPE.match(mailbox.local) is not None


def has_room(mailbox: Mailbox, scheme: Scheme = Scheme.DRAFT) -> bool:
    """Whether the mailbox stays within RFC 5321's lengths with a tag on. Source: RFC 5321 section 4.5.3.1."""
    local = len(mailbox.local)
    if scheme is _STRONG:
        local += STRONG_TAG_OCTETS - TAG_OCTETS
    return local <= _LONGEST_LOCAL_PART and local + len(mailbox.domain) <= _LONGEST_LOCAL_PART_AND_DOMAIN


class ForeignForm(Enum):
    """Forms of other systems that a site can leave to whoever makes them."""

    SRS = "srs"  # SRS0=HHH=TT=domain=user, SRS1=...
    EXCHANGE_SRS = "exchange-srs"  # user+SRS=hash=TT=domain=user
    CISCO = "cisco"  # prvs=user=TAG
    BARRACUDA = "barracuda"  # btv1==TAG==user
    SPARKPOST = "sparkpost"  # msprvs1=TAG=user


_FOREIGN: Final = {
    ForeignForm.SRS: re.compile(rb'(?i)"?SRS[01][=+-].+=.+=.+=.+'),
    ForeignForm.EXCHANGE_SRS: re.compile(rb"(?i).+\+SRS=.+=.+=.+=.+"),
    ForeignForm.CISCO: re.compile(rb'(?i)"?prvs=[^=]+=[0-9]{4}[0-9a-f]{6}"?\Z'),
    ForeignForm.BARRACUDA: re.compile(rb'(?i)"?btv1==[^=]+==.+'),
    ForeignForm.SPARKPOST: re.compile(rb'(?i)"?msprvs1=[^=]+=.+'),
}


def foreign_form(mailbox: Mailbox, among: Collection[ForeignForm] = tuple(ForeignForm)) -> ForeignForm | None:
    """Return which other system's form the local part has, or None. A well-formed tag of ours is never another's.

    Args:
        mailbox: the address.
        among: the forms that are looked for; an address may have more than one.
    """
    if take_off(mailbox) is not None:
        return None
    return next((form for form in ForeignForm if form in among and _FOREIGN[form].match(mailbox.local)), None)


# Of a tag that was cut short in the text nothing is shown that is left of the signature.
_IN_TEXT = re.compile(r"(prvs(2)?=[0-9]{4})[0-9a-f]{6}(?(2)[0-9a-f]{0,4})", re.IGNORECASE)


def shorten(text: str) -> str:
    """Return text with every tag in it shortened, for logs and journals: tags are bearer credentials.

    Key number and day stay, for whoever looks for the cause; of the signature not one bit does.
    """
    # Most texts have none, and that is found out in a fraction of the time.
    return _IN_TEXT.sub(r"\1******", text) if "prvs" in text.casefold() else text
