"""The events of a running service.

What peers sent stands in events as text that `printable` has made clean: with every tag in it shortened, since tags are
bearer credentials, and whoever reads a log must not be able to have a bounce delivered; and with nothing in it that a
terminal would act on. Causes may quote a peer, so they are made clean where they are written. Times are POSIX seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from batv.tag import shorten
from batv.verdict import FORGED, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batv.verdict import Disposition

__all__ = [
    "Direction",
    "Event",
    "Level",
    "Misnamed",
    "Notice",
    "Observer",
    "RecipientOutcome",
    "TransactionEnded",
    "clean",
    "printable",
]


_JUDGED: Final = FORGED | {Verdict.VALID, Verdict.RESCUED}


class Direction(Enum):
    """Which of the two proxies."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"

    def __init__(self, word: str) -> None:
        self.word = word  # as `value`, which takes longer

    def __str__(self) -> str:
        """Return the word of the direction."""
        return self.word


class Level(Enum):
    """How much an event matters to an administrator."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    def __init__(self, word: str) -> None:
        self.word = word.upper()  # as `name`, which takes longer


class RecipientOutcome(NamedTuple):
    """What became of one recipient.

    Attributes:
        forward_path: the path as the client gave it.
        verdict: what was found out: about the recipient inbound, about the sender outbound.
        disposition: what was done.
        reason: one clause that says why.
        key_number: number of the key in the tag, or that signed; None without a tag.
        reply: what the client was told: at RCPT where the recipient was refused, else at the end of the message.
        exempt: whether an exemption of the site decided.
    """

    forward_path: str
    verdict: Verdict
    disposition: Disposition
    reason: str
    key_number: int | None
    reply: str
    exempt: bool = False


class Misnamed(NamedTuple):
    """What a RCPT named that was no recipient.

    Attributes:
        argument: as the client gave it.
        reply: what the client was told.
    """

    argument: str
    reply: str


class TransactionEnded(NamedTuple):  # a frozen dataclass of so many fields takes three times as long to make
    """A transaction ended: with a reply to its message, or without one.

    Attributes:
        time: when, POSIX seconds.
        session: identifier of the session.
        transaction: identifier of the transaction.
        direction: which proxy.
        client: address of the client.
        helo: what the client called itself.
        reverse_path: as the client gave it.
        recipients: those that the client named, in their order; of refused ones only the first.
        message_id: the message's Message-ID; empty if it has none or none was seen.
        size: octets of the message as received.
        relay: the next hop.
        reply: the last reply that the client got to the transaction.
        cause: what went wrong, for the log alone; empty if nothing did.
        null_sender: whether the reverse path is null.
        unnamed: how many refused recipients are not among `recipients`.
        misnamed: the first of them that was no recipient to begin with; None where none was.
    """

    time: float
    session: str
    transaction: str
    direction: Direction
    client: str
    helo: str
    reverse_path: str
    recipients: tuple[RecipientOutcome, ...]
    message_id: str
    size: int
    relay: str
    reply: str
    cause: str = ""
    null_sender: bool = False
    unnamed: int = 0
    misnamed: Misnamed | None = None

    @property
    def bounce(self) -> bool:
        """Whether it was judged as a bounce, with a sender or without, or would have been but for an exemption."""
        return self.null_sender or any(each.exempt or each.verdict in _JUDGED for each in self.recipients)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the service or to a session.

    Attributes:
        level: how much it matters.
        what: one clause; the same for every event of a kind.
        fields: what it happened to and why, in the order to print.
    """

    level: Level
    what: str
    fields: Mapping[str, object] = field(default_factory=dict)


_MAX_OCTETS: Final = 1024
"""Of a path, a name or a reply in an event: four times what RFC 5321 section 4.5.3.1.3 lets a path have."""

Event: TypeAlias = TransactionEnded | Notice
Observer: TypeAlias = "Callable[[Event], None]"


def printable(octets: bytes) -> str:
    """Return octets from a peer as text for an event, cut after 1024 of them and made clean."""
    if len(octets) > _MAX_OCTETS:
        octets = octets[:_MAX_OCTETS] + b"..."
    return clean(octets.decode("utf-8", "backslashreplace"))


def clean(text: str) -> str:
    """Return text for an event: tags shortened, nothing in it that a terminal, or a reader of lines, would act on."""
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)
    return shorten(text)
