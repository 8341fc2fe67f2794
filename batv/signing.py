"""Sign an address, verify one, and say which check failed.

A tag made on day d says DDD = d + lifetime. It is good on day x iff (DDD - x) mod 1000 <= lifetime + 1: from d - 1,
for a verifier whose clock is late, through d + lifetime, on no other day of the cycle and across every wrap. The
checks come in the order grammar, key, signature, day, so that the result names the first that failed.

A key whose step is N rounds d + lifetime up to a multiple of N days since 1970, before the modulo. So the N days that
come to the same multiple share one tag, which is good from the day before the first of them through lifetime days
after the last: on x iff (DDD - x) mod 1000 <= lifetime + N. With N = 1 that is the rule above.

Source: draft-levine-smtp-batv-01 sections 4 and 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from batv import mac
from batv.day import stamp_distance
from batv.mac import Case
from batv.tag import SURELY_ROOM, Placement, Scheme, has_room, looks_tagged, put_on_fields, tag_and_rest
from batv.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batv.address import Mailbox
    from batv.day import Day
    from batv.keyring import Key, KeyRing
    from batv.tag import Tag

__all__ = [
    "DEFAULT_STYLE",
    "Obstacle",
    "Style",
    "Verification",
    "has_routing_characters",
    "obstacle",
    "sign",
    "sign_with",
    "strip",
    "verify",
    "verify_any",
]

_ROUTING_CHARACTER: Final = re.compile(rb"[%!@]")
_OF_TAG_OR_ROUTE: Final = re.compile(rb"[=%!@]")

# An enum takes its time to find a member, so it is asked once.
_VALID: Final = Verdict.VALID
_DRAFT: Final = Scheme.DRAFT


@dataclass(frozen=True, slots=True)
class Style:
    """How tags are written.

    Attributes:
        case: whether the hash source is folded.
        placement: where the tag stands in the local part.
        scheme: how tags are signed.
    """

    case: Case = Case.FOLD
    placement: Placement = Placement.PREFIX
    scheme: Scheme = Scheme.DRAFT


DEFAULT_STYLE: Final = Style()
"""The draft's placement and scheme, letters folded."""


class Obstacle(Enum):
    """Why an address stays unsigned. Bounces to such an address are not judged, but for the tagged ones."""

    TAGGED = "carries a tag already"
    TOO_LONG = "local part too long for a tag"
    ROUTING = "local part with a routing character"


class Verification(NamedTuple):  # a frozen dataclass of so many fields takes longer to make than the HMAC
    """What the checks of one address found.

    Attributes:
        verdict: VALID, UNTAGGED, MALFORMED, UNKNOWN_KEY, BAD_SIGNATURE or EXPIRED.
        reason: one clause that names the check, for the log.
        mailbox: the address without its tag; the address itself where none was found.
        tag: the tag, where one was found.
        key: the key that the tag names, where the ring has it.
        case: the case in which the signature fits.
        days_left: further days on which the tag is good, 0 on its last; None unless it is valid.
    """

    verdict: Verdict
    reason: str
    mailbox: Mailbox
    tag: Tag | None = None
    key: Key | None = None
    case: Case | None = None
    days_left: int | None = None


def obstacle(mailbox: Mailbox, scheme: Scheme = Scheme.DRAFT) -> Obstacle | None:
    """Return why this address cannot be signed, or None if it can."""
    if _OF_TAG_OR_ROUTE.search(mailbox.local) is not None:  # in few addresses
        if tag_and_rest(mailbox) is not None:
            return Obstacle.TAGGED
        if has_routing_characters(mailbox):
            return Obstacle.ROUTING
    # Most addresses are short, and need not be asked about.
    if len(mailbox.local) + len(mailbox.domain) > SURELY_ROOM and not has_room(mailbox, scheme):
        return Obstacle.TOO_LONG
    return None


def has_routing_characters(mailbox: Mailbox) -> bool:
    """Whether the local part holds `%`, `!` or `@`, by which old relays are told where to send a message on."""
    return _ROUTING_CHARACTER.search(mailbox.local) is not None


def sign(mailbox: Mailbox, ring: KeyRing, day: Day, style: Style = DEFAULT_STYLE) -> Mailbox | Obstacle:
    """Return the signed address, or why it cannot be signed.

    Args:
        mailbox: the address to sign.
        ring: the ring whose signing key of that day is used.
        day: today, in UTC.
        style: how the tag is written.

    Raises:
        NoSigningKeyError: no key of the ring signs on that day.
    """
    hindrance = obstacle(mailbox, style.scheme)
    return sign_with(mailbox, ring.signing_key(day), day, style) if hindrance is None else hindrance


def sign_with(mailbox: Mailbox, key: Key, day: Day, style: Style = DEFAULT_STYLE) -> Mailbox:
    """Return the address signed with one key as of that day, whatever the key's role and the address's length."""
    ahead = key.lifetime
    if key.step != 1:
        ahead += -(day.number + ahead) % key.step
    stamp = day.stamp_after(ahead)
    signature = mac.sign(key, stamp, mailbox, style.case, style.scheme)
    return put_on_fields(mailbox, key.number, stamp, signature, style.placement)


def verify(mailbox: Mailbox, ring: KeyRing, day: Day) -> Verification:
    """Return what the checks find out about an address.

    Args:
        mailbox: the address as it came, with or without a tag.
        ring: the keys.
        day: today, in UTC.
    """
    return verify_any(mailbox, (ring,), day)


def verify_any(mailbox: Mailbox, rings: Iterable[KeyRing], day: Day, draft_until: Day | None = None) -> Verification:
    """Return the finding of the first ring that finds the tag valid, else that of the first ring.

    Args:
        mailbox: the address as it came, with or without a tag.
        rings: the rings whose tags are accepted.
        day: today, in UTC.
        draft_until: last day on which tags of the draft's scheme are accepted; None: always.
    """
    parts = tag_and_rest(mailbox)
    if parts is None:
        if looks_tagged(mailbox):
            return Verification(Verdict.MALFORMED, "starts like a tag, is none", mailbox)
        return Verification(Verdict.UNTAGGED, "no tag", mailbox)
    tag, bare, _ = parts
    first: Verification | None = None
    for ring in rings:
        found = _check(tag, bare, ring, day)
        if found.verdict is _VALID:
            if draft_until is None or day <= draft_until or tag.scheme is not _DRAFT:
                return found
            reason = f"tags of the draft's scheme are accepted until {draft_until}"
            found = found._replace(verdict=Verdict.EXPIRED, reason=reason, days_left=None)
        first = first or found
    return first or Verification(Verdict.UNKNOWN_KEY, "no key ring", bare, tag)


def _check(tag: Tag, mailbox: Mailbox, ring: KeyRing, day: Day) -> Verification:
    key = ring.key(tag.key_number)
    if key is None:
        return Verification(Verdict.UNKNOWN_KEY, f"no key {tag.key_number} in the ring", mailbox, tag)
    if key.revoked is not None:
        return Verification(Verdict.UNKNOWN_KEY, f"key {key.number} was revoked on {key.revoked}", mailbox, tag, key)
    case = mac.verify(key, tag.stamp, mailbox, tag.signature)
    if case is None:
        return Verification(Verdict.BAD_SIGNATURE, "the tag does not fit the address", mailbox, tag, key)
    days_left = stamp_distance(tag.stamp, day)
    if days_left > key.lifetime + key.step:
        reason = f"the tag's days are past or not begun (stamp {tag.stamp.decode()}, today {day.stamp.decode()})"
        return Verification(Verdict.EXPIRED, reason, mailbox, tag, key, case)
    if key.retired is not None and key.free(day):
        # Without this, a spent key's old tags would come alive again when the day counter has gone round.
        return Verification(Verdict.EXPIRED, f"all tags of key {key.number} have expired", mailbox, tag, key, case)
    return Verification(_VALID, "tag good", mailbox, tag, key, case, days_left)


def strip(mailbox: Mailbox) -> Mailbox:
    """Return the address without its tag, whatever the tag is worth; the address itself if it carries none."""
    parts = tag_and_rest(mailbox)
    return mailbox if parts is None else parts[1]
