"""The bounce budget: how many bounces may come to a tag, for what was sent with it.

Whoever gets hold of a tag can send bounces to it until it expires. But mail to so many recipients has only so many
bounces: a failure for each, a notice of delay or two before that, an automatic reply. What comes beyond a multiple of
the recipients, and a few more, may still be genuine, since the address of a list stands for many; so it is looked into,
and put aside where its content proves nothing. It is never thrown away.

Where nothing is known to have been sent with a tag there is no budget: another host may have signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.address import fold
from batv.tag import tag_and_rest

if TYPE_CHECKING:
    from batv.address import Mailbox

__all__ = ["SPARE_BOUNCES", "Account", "account_of"]

SPARE_BOUNCES: Final = 10
"""Bounces that any tag may have beyond its multiple: a message to one recipient can be delayed for days."""


@dataclass(frozen=True, slots=True)
class Account:
    """What was sent with a tag, and what has come back.

    Attributes:
        recipients: to whom mail left with it.
        bounces: messages with a null sender that were taken for it.
    """

    recipients: int
    bounces: int

    def overdrawn(self, bounces_per_recipient: int) -> bool:
        """Return whether one more bounce is more than mail to so many recipients should have."""
        return self.recipients > 0 and self.bounces >= bounces_per_recipient * self.recipients + SPARE_BOUNCES


def account_of(mailbox: Mailbox) -> bytes | None:
    """Return what stands for the tag of an address wherever it is written, without its signature; None without a tag.

    That is the sender, the key and the day of expiry: no two tags that are good have all of these in common.
    """
    parts = tag_and_rest(mailbox)
    if parts is None:
        return None
    tag, bare, _ = parts
    return b"%d%b %b" % (tag.key_number, tag.stamp, fold(bare.octets))
