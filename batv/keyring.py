"""Keys and the key ring: immutable values. What a key may do is computed from a Day, never stored.

Rules that a ring keeps:

1. A number, 0 to 9, stands for one key. It is free again only when no tag made with its key is alive.
2. On no day do two keys sign.
3. A key verifies from the moment it is in the ring, so that every node can verify before any node signs.
4. A key leaves the ring only when no tag made with it is alive.

A key's life: it is made (pending: verifies only), signs from a day on (signing), stops on a day (retiring: verifies
until its last tag has expired), and is spent (retired: may be pruned). A revoked key verifies nothing from that
moment on; it keeps its number until its tags would have expired.

Source: draft-levine-smtp-batv-01 section 4 (K, the key number, lets keys change).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from batv.errors import KeyRingDataError, KeyRingRuleError, NoSigningKeyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batv.day import Day

__all__ = [
    "DEFAULT_LIFETIME_DAYS",
    "KEY_NUMBERS",
    "MAX_LIFETIME_DAYS",
    "MAX_STEP_DAYS",
    "SECRET_OCTETS",
    "WEAK_SECRET_OCTETS",
    "Key",
    "KeyRing",
    "KeyRings",
    "Role",
    "Secret",
]

KEY_NUMBERS: Final = range(10)
"""One digit of the tag."""

DEFAULT_LIFETIME_DAYS: Final = 7
"""The draft's and Exim's: longer than the five days for which queues keep trying (RFC 5321 section 4.5.4.1)."""

MAX_LIFETIME_DAYS: Final = 365
"""Well under the cycle of 1000 days, of which a tag is then good on 367."""

MAX_STEP_DAYS: Final = 90
"""With the longest lifetime a tag is still good on less than half of the cycle."""

_CLOCKS_DIFFER_DAYS: Final = 1
"""Days by which the clocks of any two nodes may differ: around midnight UTC they always do."""

SECRET_OCTETS: Final = 32
"""Octets of a secret that we make: beyond SHA-1's 20, so that the secret is never the weak part."""

WEAK_SECRET_OCTETS: Final = 16
"""A secret shorter than this can be guessed offline from one harvested tag."""


class Secret:
    """A key's secret octets, which neither `repr` nor `str` nor a traceback shows."""

    __slots__ = ("octets",)

    def __init__(self, octets: bytes) -> None:
        self.octets: Final = octets

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same octets."""
        return isinstance(other, Secret) and self.octets == other.octets

    def __hash__(self) -> int:
        """Return a hash of the octets."""
        return hash(self.octets)

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return "Secret(****)"


class Role(Enum):
    """What a key may do on a day."""

    PENDING = "pending"  # verifies; signs from a later day, or when activated
    SIGNING = "signing"  # signs and verifies
    RETIRING = "retiring"  # verifies until its last tag has expired
    RETIRED = "retired"  # no tag of it is alive: may be pruned, and its number used again
    REVOKED = "revoked"  # neither signs nor verifies

    def __str__(self) -> str:
        """Return the word of the role."""
        return self.value


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a ring.

    Attributes:
        number: the K of its tags, 0 to 9.
        secret: octets of the HMAC key.
        created: the day it came into the ring.
        lifetime: days for which its tags are good after the day of signing.
        signs_from: first day on which it signs; None while that is not settled.
        retired: first day on which it no longer signs; None while that is not settled.
        revoked: day of its revocation, or None.
        step: days for which an address keeps one tag: its expiry is rounded up to a multiple of this. It belongs to
            the key as the lifetime does: who verifies must know how far ahead an expiry may lie.
    """

    number: int
    secret: Secret = field(repr=False)
    created: Day
    lifetime: int = DEFAULT_LIFETIME_DAYS
    signs_from: Day | None = None
    retired: Day | None = None
    revoked: Day | None = None
    step: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values that no ring can be right with."""
        if self.number not in KEY_NUMBERS:
            raise KeyRingDataError(f"key number {self.number} is not 0 to 9")
        if not self.secret.octets:
            raise KeyRingDataError(f"key {self.number} has an empty secret")
        if not 1 <= self.lifetime <= MAX_LIFETIME_DAYS:
            raise KeyRingDataError(
                f"key {self.number} has a lifetime of {self.lifetime} days", f"give 1 to {MAX_LIFETIME_DAYS} days"
            )
        if not 1 <= self.step <= MAX_STEP_DAYS:
            raise KeyRingDataError(f"key {self.number} has a step of {self.step} days", f"give 1 to {MAX_STEP_DAYS}")

    def role(self, day: Day) -> Role:
        """Return what the key may do on that day."""
        if self.revoked is not None:
            return Role.REVOKED
        if self.retired is not None and day >= self.retired:
            return Role.RETIRED if self.free(day) else Role.RETIRING
        return Role.SIGNING if self.signs(day) else Role.PENDING

    # Asked for each message, so both go without the role and compare numbers.

    def signs(self, day: Day) -> bool:
        """Whether the key signs on that day."""
        if self.signs_from is None or self.revoked is not None or self.signs_from.number > day.number:
            return False
        return self.retired is None or self.retired.number > day.number

    def verifies(self, day: Day) -> bool:
        """Whether tags of this key may be accepted on that day."""
        return self.revoked is None and (self.retired is None or not self.free(day))

    @property
    def longest(self) -> int:
        """Days for which a tag can be good after the day of signing: the lifetime, and what rounding up adds."""
        return self.lifetime + self.step - 1

    @property
    def last_alive(self) -> Day | None:
        """Last day on which a tag made with this key can be alive anywhere; None while it may still sign.

        A key that stops at once has signed on that day, on a node whose clock is early with the next day's stamp; and
        a node whose clock is late verifies for one day more than the one that prunes.
        """
        ends = [day for day in (self.retired, self.revoked) if day is not None]
        return min(ends) + self.longest + 2 * _CLOCKS_DIFFER_DAYS if ends else None

    def free(self, day: Day) -> bool:
        """Whether no tag made with this key is alive on that day: the key may go, and its number be used again."""
        last = self.last_alive
        return last is not None and day > last

    @property
    def weak(self) -> bool:
        """Whether the secret is short enough to be guessed from one tag."""
        return len(self.secret.octets) < WEAK_SECRET_OCTETS


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Up to ten keys, by number.

    Every change returns a new ring and raises KeyRingRuleError where it would break a rule of this module.

    Attributes:
        created: the day the ring was begun.
        keys: the keys, in the order of their numbers.
        domain: the domain whose own ring it is; None for the default ring. It is for messages alone.
    """

    created: Day
    keys: tuple[Key, ...] = ()
    domain: bytes | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the rules that hold between keys."""
        numbers = [key.number for key in self.keys]
        if len(set(numbers)) != len(numbers):
            raise KeyRingDataError("a key number stands in the ring twice", "restore the ring from a copy")
        if numbers != sorted(numbers):
            object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda key: key.number)))
        spans = [
            (key.signs_from, key.retired)
            for key in self.keys
            if key.signs_from is not None and key.revoked is None and key.retired != key.signs_from
        ]
        spans.sort(key=lambda span: span[0])
        for (_, end), (begin, _) in pairwise(spans):
            if end is None or end > begin:
                raise KeyRingDataError(f"two keys would sign on {begin}", "restore the ring from a copy")

    @property
    def longest(self) -> int:
        """Days for which a tag can be good after the day of signing, by the key with which it is so for longest."""
        return max((key.longest for key in self.keys), default=0)

    @property
    def name(self) -> str:
        """What messages call the ring."""
        return "the default ring" if self.domain is None else f"the ring of {_shown(self.domain)}"

    @property
    def option(self) -> str:
        """What commands about the ring need after their other words."""
        return _option(self.domain)

    @property
    def signing_remedy(self) -> str:
        """What to do where no key signs."""
        return f"make one with 'batv key new{self.option}' or let one sign with 'batv key activate N{self.option}'"

    def key(self, number: int) -> Key | None:
        """Return the key of that number, or None."""
        for key in self.keys:
            if key.number == number:
                return key
        return None

    def signing_key(self, day: Day) -> Key:
        """Return the key that signs on that day.

        Raises:
            NoSigningKeyError: there is none.
        """
        for key in self.keys:
            if key.signs(day):
                return key
        raise NoSigningKeyError(f"no key of {self.name} signs on {day}", self._remedy_on(day))

    def _remedy_on(self, day: Day) -> str:
        """Return what to do where no key signs on a day: nobody can make a key that signs in the past."""
        if all(day >= made for made in (self.created, *(key.created for key in self.keys))):
            return self.signing_remedy
        later = [key.signs_from for key in self.keys if key.signs_from is not None and key.signs_from > day]
        named = f"name {min(later)}, or a later day" if later else f"see 'batv key list{self.option}'"
        return f"one that is made now would not either, {named}"

    def signs(self, day: Day) -> bool:
        """Whether a key signs on that day."""
        return any(key.signs(day) for key in self.keys)

    def unsigned_from(self, day: Day) -> Day | None:
        """Return the first day, from that day on, on which no key signs; None where one always does."""
        ends = sorted(key.retired for key in self.keys if key.retired is not None and key.retired > day)
        return next((begin for begin in (day, *ends) if not self.signs(begin)), None)

    def verifying_key(self, number: int, day: Day) -> Key | None:
        """Return the key of that number if its tags may be accepted on that day, else None."""
        key = self.key(number)
        return key if key is not None and key.verifies(day) else None

    # Changes. Each takes the day of the change; "on" is the day from which it has its effect.

    def free_number(self, day: Day) -> int:
        """Return the number for the next key: the one after the newest key's that is free.

        Raises:
            KeyRingRuleError: all ten numbers are in use by keys with live tags.
        """
        taken = {key.number for key in self.keys if not key.free(day)}
        newest = max(self.keys, key=lambda key: (key.created, key.signs_from or key.created), default=None)
        first = newest.number + 1 if newest is not None else 0
        for step in KEY_NUMBERS:
            number = (first + step) % len(KEY_NUMBERS)
            if number not in taken:
                return number
        raise KeyRingRuleError(
            f"all ten key numbers are in use by keys of {self.name} whose tags may be alive", self._room(day)
        )

    def with_key(self, key: Key, day: Day) -> Self:
        """Return the ring with one key more; a key whose number it takes must be free on that day."""
        old = self.key(key.number)
        if old is not None and not old.free(day):
            last = old.last_alive
            until = f"until {last}" if last is not None else "for as long as it signs"
            raise KeyRingRuleError(
                f"key number {key.number} is in use: tags made with it are alive {until}", "use another number"
            )
        return replace(self, keys=(*(kept for kept in self.keys if kept.number != key.number), key))

    def with_newcomer(self, key: Key, day: Day) -> Self:
        """Return the ring with one key more, which signs at once where no key signs on that day, else only verifies."""
        if self.signs(day):
            return self.with_key(key, day)
        starts = [
            other.signs_from
            for other in self.keys
            if other.signs_from is not None and other.signs_from > day and other.revoked is None
        ]
        # Where another key is already set to sign from a later day, the newcomer fills the days before.
        return self.with_key(replace(key, signs_from=day, retired=min(starts, default=None)), day)

    def activated(self, number: int, day: Day, on: Day) -> Self:
        """Return the ring in which that key signs from the day `on`, and the key that would then sign stops."""
        key = self._existing(number)
        if on < day:
            raise KeyRingRuleError(f"{on} is past", "activate a key from today on, or later")
        role = key.role(day)
        if role in {Role.RETIRING, Role.RETIRED, Role.REVOKED}:
            raise KeyRingRuleError(
                f"key {number} is {role} and cannot sign again", f"make a new key with 'batv key rotate{self.option}'"
            )
        if role is Role.SIGNING:
            raise KeyRingRuleError(f"key {number} signs already since {key.signs_from}")
        # A key that was to sign for a limited time only, until a later one took over, signs without an end now.
        changed = [replace(key, signs_from=on, retired=None)]
        for other in self._handed_back(key, day):
            begins = other.signs_from
            ends = other.retired
            if begins is None or other.revoked is not None or (ends is not None and ends <= on):
                changed.append(other)
            elif begins >= on and begins > day:
                # It was to sign later, or from the same day: the newly activated key takes its place. One that
                # began today has perhaps signed, so that its tags must be waited for.
                changed.append(replace(other, signs_from=None, retired=None))
            else:
                changed.append(replace(other, retired=on))
        return replace(self, keys=tuple(changed))

    def with_retired(self, number: int, day: Day) -> Self:
        """Return the ring in which that key signs no more; its tags stay good until they expire."""
        key = self._existing(number)
        role = key.role(day)
        if role in {Role.RETIRING, Role.RETIRED, Role.REVOKED}:
            raise KeyRingRuleError(f"key {number} is {role} already")
        signs_from = key.signs_from if key.signs_from is None or key.signs_from <= day else None
        return replace(self, keys=(*self._handed_back(key, day), replace(key, retired=day, signs_from=signs_from)))

    def with_revoked(self, number: int, day: Day) -> Self:
        """Return the ring in which that key counts for nothing: its tags are refused from now on."""
        key = self._existing(number)
        if key.revoked is not None:
            raise KeyRingRuleError(f"key {number} is revoked already, since {key.revoked}")
        return replace(self, keys=(*self._handed_back(key, day), replace(key, revoked=day)))

    def prunable(self, day: Day) -> tuple[Key, ...]:
        """Return the keys of which no tag is alive on that day."""
        return tuple(key for key in self.keys if key.free(day))

    def pruned(self, number: int, day: Day) -> Self:
        """Return the ring without that key, none of whose tags may be alive."""
        key = self._existing(number)
        if not key.free(day):
            last = key.last_alive
            raise KeyRingRuleError(
                f"key {number} is needed: tags made with it may be alive"
                + (f" until {last}" if last is not None else ""),
                f"retire it first, with 'batv key retire {number}{self.option}'"
                if last is None
                else f"prune it on {last + 1} or later",
            )
        return replace(self, keys=tuple(kept for kept in self.keys if kept.number != number))

    def _existing(self, number: int) -> Key:
        key = self.key(number)
        if key is None:
            raise KeyRingRuleError(f"there is no key {number} in {self.name}", f"see 'batv key list{self.option}'")
        return key

    def _room(self, day: Day) -> str:
        """Return how a ring that is full gets a free number."""
        soonest = min((last for key in self.keys if (last := key.last_alive) is not None), default=None)
        ways = [f"wait until {soonest + 1}"] if soonest is not None else []
        pending = [key for key in self.keys if key.role(day) is Role.PENDING]
        if pending:
            days = min(key.longest for key in pending) + 2 * _CLOCKS_DIFFER_DAYS + 1
            numbers = ", ".join(str(key.number) for key in pending)
            ways.append(
                f"retire a pending key that is not needed (of {numbers}) with 'batv key retire N{self.option}':"
                f" its number is free {days} days later"
            )
        return ", or ".join(ways) or f"retire a key that is no longer needed with 'batv key retire N{self.option}'"

    def _handed_back(self, key: Key, day: Day) -> tuple[Key, ...]:
        """Return the other keys as they are without that key's plan to sign from a later day.

        The key that was to stop then goes on for as long as the planned one was to sign, so that no day is left
        without a key that signs.
        """
        begins = key.signs_from
        others = (other for other in self.keys if other.number != key.number)
        if begins is None or begins <= day:
            return tuple(others)
        return tuple(replace(other, retired=key.retired) if other.retired == begins else other for other in others)


@dataclass(frozen=True, slots=True)
class KeyRings:
    """The default ring, and the own rings of the domains that have one.

    A domain that gets a ring of its own has tags of the default ring under way. They stay good for the default
    ring's lifetime from the day on which the own ring was begun.

    Attributes:
        default: the ring of every domain without its own; None where there is no such ring.
        own: rings by domain, in lower case.
    """

    default: KeyRing | None
    own: Mapping[bytes, KeyRing] = field(default_factory=dict)

    def ring_for(self, domain: bytes) -> KeyRing:
        """Return the ring that signs for a domain.

        Raises:
            NoSigningKeyError: there is none.
        """
        ring = self.own.get(domain.lower(), self.default)
        if ring is None:
            raise NoSigningKeyError(
                f"there is no key ring for {_shown(domain)}",
                f"make one with 'batv key new', or one for this domain alone with 'batv key new{_option(domain)}'; if"
                " one was lost, restore it from a backup: bounces of mail that it signed are good with it alone",
            )
        return ring

    def rings_for(self, domain: bytes, day: Day) -> tuple[KeyRing, ...]:
        """Return the rings whose tags are accepted for a domain on that day, its own first."""
        own = self.own.get(domain.lower())
        if own is None:
            return (self.default,) if self.default is not None else ()
        if self.default is not None and self.default.keys and day - own.created <= self.default.longest + 1:
            return (own, self.default)
        return (own,)

    def longest(self, domain: bytes) -> int:
        """Return the days for which tags of a domain can be good after the day of signing; 0 without a ring."""
        ring = self.own.get(domain.lower(), self.default)
        return ring.longest if ring is not None else 0


def _shown(domain: bytes) -> str:
    return domain.decode("utf-8", "replace")


def _option(domain: bytes | None) -> str:
    return "" if domain is None else f" --domain {_shown(domain)}"
