"""One of the two proxies, as its sessions see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from batv.access import Access
    from batv.config import SmtpSettings
    from batv.day import Day
    from batv.guessing import Guessing
    from batv.keyring import KeyRings
    from batv.net.dnsbl import Blocklists
    from batv.net.next_hop import NextHop
    from batv.observe.event import Direction, Observer, TransactionEnded
    from batv.stage import Stage
    from batv.store.ledger import Ledger
    from batv.store.quarantine import Quarantine

__all__ = ["NOTICE_SECONDS", "Recorder", "Side"]

NOTICE_SECONDS: Final = 60.0
"""Between two lines of the log of one kind: that the quarantine is full, that a tag has too many bounces."""


class Recorder(Protocol):
    """What keeps the records of messages."""

    fsync: bool

    def check(self) -> None:
        """Raise BatvError if a record could not be written now, as far as that can be told without writing one."""

    def write(self, event: TransactionEnded) -> bool:
        """Write the records of a transaction, and return whether it has any; raises BatvError if they are not kept."""

    def sync(self) -> None:
        """Wait until the disk has them; raises BatvError if it does not take them."""


@dataclass(slots=True)
class Side:
    """What the sessions of a proxy share.

    A reload puts new values in; a transaction keeps its stage, keys and next hop.

    Attributes:
        direction: which proxy.
        stage: who is asked about each path.
        rings: returns the keys as they are now.
        next_hop: where the mail goes on to.
        access: whose mail is taken.
        xclient_from: peers that may say with XCLIENT who the client is.
        xforward_from: peers that may say with XFORWARD who the client is.
        journal: keeps the records.
        quarantine: keeps forged bounces of domains that want it.
        observer: told of each transaction that has ended, and of what goes wrong.
        settings: limits on clients.
        hostname: what we call ourselves.
        clock: returns POSIX seconds.
        day: returns the day in UTC.
        clock_doubt: returns why the clock cannot be believed now; empty if it can.
        blocklists: asked about clients who bring bounces; None for no lists.
        guessing: counts failed tags; None for not.
        ledger: knows what was sent to whom; None for no ledger.
        open_bounces: how many bounces are under way to each tag whose bounces are counted.
        gathered_octets: octets of messages that are looked at before it is decided whether they go on.
        says_full_from: when, in seconds of the event loop, the log may say again that the quarantine is full.
        says_overdrawn_from: when it may say again that a tag has more bounces than its mail should have.
    """

    direction: Direction
    stage: Stage
    rings: Callable[[], KeyRings]
    next_hop: NextHop
    access: Access
    xclient_from: Sequence[IPv4Network | IPv6Network]
    xforward_from: Sequence[IPv4Network | IPv6Network]
    journal: Recorder
    quarantine: Quarantine
    observer: Observer
    settings: SmtpSettings
    hostname: str
    clock: Callable[[], float]
    day: Callable[[], Day]
    clock_doubt: Callable[[], str]
    blocklists: Blocklists | None = None
    guessing: Guessing | None = None
    ledger: Ledger | None = None
    open_bounces: Counter[bytes] = field(default_factory=Counter)
    gathered_octets: int = 0
    says_full_from: float = 0.0
    says_overdrawn_from: float = 0.0
