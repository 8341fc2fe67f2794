"""Tags a second, against the one operation that none can do without: a fresh HMAC-SHA1 over the same octets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.hmac import HMAC

from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.signing import sign, verify
from batv.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CODEC", "measure_codec"]

CODEC: Final = ("fresh HMAC-SHA1", "signed", "verified")
"""What is counted, in the order in which it is measured."""

_DAY: Final = Day.from_iso("2026-03-10")
_KEY: Final = Key(3, Secret(b"published: the secret of a bench"), _DAY, signs_from=_DAY)
_RING: Final = KeyRing(_DAY, (_KEY,))
_PLAIN: Final = tuple(Mailbox(b"user%d" % number, b"example.com") for number in range(1000))


def measure_codec(seconds: float) -> dict[str, float]:
    """Return how many a second there are of each kind of CODEC, on one core.

    Processor time is counted, and the kinds take turns, so that what else the machine does slows all of them alike.

    Args:
        seconds: how long each kind is measured, about.
    """
    stamp = (_DAY + _KEY.lifetime).stamp
    sources = [b"%d%b%b" % (_KEY.number, stamp, mailbox.octets) for mailbox in _PLAIN]
    tagged = [mailbox for mailbox in (sign(mailbox, _RING, _DAY) for mailbox in _PLAIN) if isinstance(mailbox, Mailbox)]
    if [verify(mailbox, _RING, _DAY).verdict for mailbox in tagged] != [Verdict.VALID] * len(_PLAIN):
        raise AssertionError("a tag that was made is not found valid")

    def fresh() -> None:
        for source in sources:
            state = HMAC(_KEY.secret.octets, SHA1())  # noqa: S303 -- the draft's hash, the measure of the others
            state.update(source)
            state.finalize()

    def signing() -> None:
        for mailbox in _PLAIN:
            sign(mailbox, _RING, _DAY)

    def verifying() -> None:
        for mailbox in tagged:
            verify(mailbox, _RING, _DAY)

    actions = (fresh, signing, verifying)
    took = dict.fromkeys(CODEC, 0.0)
    rounds = 0
    while not rounds or sum(took.values()) < seconds * len(CODEC):
        for name, action in zip(CODEC, actions, strict=True):
            took[name] += _seconds(action)
        rounds += 1
    return {name: round(rounds * len(_PLAIN) / took[name]) for name in CODEC}


def _seconds(action: Callable[[], None]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began
