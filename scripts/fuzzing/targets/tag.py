"""Tags: found where the reference finds them, and what is signed comes back octet for octet."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Final

from batv.address import Mailbox
from batv.day import Day
from batv.errors import AddressError
from batv.keyring import Key, KeyRing, Secret
from batv.mac import Case
from batv.signing import Obstacle, Style, obstacle, sign, sign_with, strip, verify
from batv.tag import Placement, Scheme, Tag, foreign_form, looks_tagged, put_on, shorten, take_off
from batv.verdict import Verdict
from tests.support import reference

__all__ = ["check", "checking"]

_TODAY: Final = Day.from_iso("2026-11-23")
_KEY: Final = Key(3, Secret(bytes(range(32))), _TODAY, 7, _TODAY)
_RING: Final = KeyRing(_TODAY, (_KEY,))
_STYLES: Final = [Style(*each) for each in product(Case, Placement, Scheme)]
_TAGS: Final = (Tag(0, b"787", b"abcdef"), Tag(0, b"787", b"abcdef0123"))


def check(octets: bytes) -> None:
    """Read octets as a mailbox, look for its tag, and sign it in every style.

    Args:
        octets: local part, `@` and domain; or any text, in which tags are shortened.
    """
    _check_shortened(octets)
    try:
        mailbox = Mailbox.parse(octets)
    except AddressError:
        assert reference.mailbox(octets) is None
        return
    assert reference.mailbox(octets) == (mailbox.local, mailbox.domain)
    wanted = reference.tagged(mailbox.local)
    found = take_off(mailbox)
    assert (found is None) == (wanted is None), "one finds a tag, one does not"
    assert strip(mailbox) == (mailbox if found is None else found.mailbox)
    assert looks_tagged(mailbox) == reference.looks_tagged(mailbox.local)
    if found is not None and wanted is not None:
        tag = found.tag
        assert (tag.key_number, tag.stamp, tag.signature) == (wanted.key_number, wanted.stamp, wanted.signature)
        assert (found.mailbox.local, found.mailbox.domain) == (wanted.rest, mailbox.domain)
        assert (found.placement is Placement.PREFIX) == wanted.prefix
        assert reference.mailbox(found.mailbox.octets) is not None, "what is left is no mailbox"
        assert foreign_form(mailbox) is None
        assert obstacle(mailbox) is Obstacle.TAGGED
    else:
        foreign_form(mailbox)
        for tag, placement in product(_TAGS, Placement):
            again = take_off(put_on(mailbox, tag, placement))
            assert again is not None
            assert (again.tag, again.mailbox) == (tag, mailbox)
    verify(mailbox, _RING, _TODAY)
    for style in _STYLES:
        _check_signed(mailbox, style, tagged=found is not None)


def _check_signed(mailbox: Mailbox, style: Style, *, tagged: bool) -> None:
    signed = sign(mailbox, _RING, _TODAY, style)
    if isinstance(signed, Obstacle):
        assert signed is obstacle(mailbox, style.scheme)
        if tagged:
            return
        hindrance, signed = signed, sign_with(mailbox, _KEY, _TODAY, style)
        too_long = len(signed.local) > 64 or len(signed.octets) > 254
        assert too_long if hindrance is Obstacle.TOO_LONG else set(mailbox.local) & set(b"%!@")
    else:
        assert len(signed.local) <= 64
        assert len(signed.octets) <= 254
        assert not set(mailbox.local) & set(b"%!@")
    assert strip(signed) == mailbox
    assert reference.mailbox(signed.octets) == (signed.local, signed.domain)
    found = verify(signed, _RING, _TODAY)
    assert (found.verdict, found.mailbox) == (Verdict.VALID, mailbox)


def _check_shortened(octets: bytes) -> None:
    text = octets.decode("utf-8", "backslashreplace")
    shown = shorten(text)
    assert not reference.holds_tag(shown), "a whole tag is shown"
    if "prvs" not in text.casefold():
        assert shown == text


checking = partial(nullcontext, check)
