"""Bounce address tag validation: sign reverse paths, judge the bounces that come back.

The library, for programs that want the tags without the proxies::

    ring = KeyRing(today, (Key(0, Secret(octets), today, signs_from=today),))
    signed = sign(Mailbox.parse(b"joe@example.com"), ring, today)
    verify(signed, ring, today).verdict  # Verdict.VALID

Everything here is a value or a function of its arguments: the day, the keys and the address are handed in.

Source: draft-levine-smtp-batv-01.
"""

from batv.address import ForwardPath, Mailbox, ReversePath
from batv.day import Day
from batv.errors import BatvError
from batv.keyring import Key, KeyRing, KeyRings, Secret
from batv.signing import Obstacle, Style, Verification, sign, strip, verify
from batv.verdict import Decision, Disposition, Verdict

__all__ = [
    "BatvError",
    "Day",
    "Decision",
    "Disposition",
    "ForwardPath",
    "Key",
    "KeyRing",
    "KeyRings",
    "Mailbox",
    "Obstacle",
    "ReversePath",
    "Secret",
    "Style",
    "Verdict",
    "Verification",
    "sign",
    "strip",
    "verify",
]
