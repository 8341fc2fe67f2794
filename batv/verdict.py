"""What is found out about an address, and what is done about it.

Source: RFC 3464 has no words for this; they are DSN-neutral and stand in every log line and journal record.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["APART", "FORGED", "SEVERITY", "STATUS_BY_VERDICT", "Decision", "Disposition", "Verdict"]


class Verdict(Enum):
    """What is found out about one address of one message."""

    VALID = "valid"  # tag good
    UNTAGGED = "untagged"  # a bounce to a plain address of ours
    MALFORMED = "malformed"  # looks like a tag, is none
    UNKNOWN_KEY = "unknown-key"  # no such key in the ring, or revoked
    BAD_SIGNATURE = "bad-signature"  # tag does not fit the address
    EXPIRED = "expired"  # signature good, day past
    NOT_A_BOUNCE = "not-a-bounce"  # a reverse path that is not null: nothing to judge
    FOREIGN = "foreign"  # a domain we do not sign for
    RESCUED = "rescued"  # no tag, but answers a message that this recipient sent
    NOT_JUDGED = "not-judged"  # ours, but left alone: another form of tag, too long to sign, exempt
    SIGNED = "signed"  # outbound: the reverse path carries a tag of ours now
    UNSIGNED = "unsigned"  # outbound: the reverse path went as it came

    def __init__(self, word: str) -> None:
        self.word = word  # as `value`, which takes longer

    def __str__(self) -> str:
        """Return the word of the verdict."""
        return self.word


FORGED: Final = frozenset(
    {Verdict.UNTAGGED, Verdict.MALFORMED, Verdict.UNKNOWN_KEY, Verdict.BAD_SIGNATURE, Verdict.EXPIRED}
)
"""The verdicts that make a bounce count as forged."""

STATUS_BY_VERDICT: Final = {
    Verdict.VALID: b"valid",
    Verdict.RESCUED: b"rescued",
    Verdict.UNTAGGED: b"invalid, missing",
    Verdict.BAD_SIGNATURE: b"invalid, bad-signature",
    Verdict.EXPIRED: b"invalid, expired",
    Verdict.UNKNOWN_KEY: b"invalid, unknown-key",
    Verdict.MALFORMED: b"invalid, malformed",
}
"""What the status field of `mark` says. The first two spellings are batv-tools'."""


class Disposition(Enum):
    """What is done with a message for one recipient."""

    PASS = "pass"  # noqa: S105 -- no password: forwards as it is
    REWRITE = "rewrite"  # forwards with the new path
    DISCARD = "discard"  # takes the message, delivers nothing, journals it
    QUARANTINE = "quarantine"  # as discard, and keeps the message in a Maildir
    REJECT = "reject"  # 550 5.7.1 in the session
    MARK = "mark"  # forwards with a status field
    DEFER = "defer"  # 451 4.3.0

    def __init__(self, word: str) -> None:
        self.word = word  # as `value`, which takes longer
        self.withholds = word in {"discard", "quarantine", "reject"}  # from the recipient

    def __str__(self) -> str:
        """Return the word of the disposition."""
        return self.word


SEVERITY: Final = {
    Disposition.PASS: 0,
    Disposition.MARK: 1,
    Disposition.QUARANTINE: 2,
    Disposition.DISCARD: 3,
    Disposition.REJECT: 3,
}
"""How bad it is for a bounce that should have been delivered."""


APART: Final = "to come in a transaction of its own"
"""Why a recipient is deferred for whom the message would be another than for those who were named before."""

PathT = TypeVar("PathT")


class Decision(NamedTuple, Generic[PathT]):  # a frozen dataclass of so many fields takes longer to make than the HMAC
    """What a stage says of one path.

    Attributes:
        verdict: what was found out.
        disposition: what is done about it.
        path: the path to send on if the message is forwarded, octet for octet.
        reason: one clause for the log and the journal; never for the peer.
        key_number: number of the key that the tag names, or that signed; None without a tag.
        status: value of the status field where the site asked for one, else None.
        exempt: whether an exemption of the site decided. What left unsigned for one has bounces that are genuine.
        undecided: whether the content may change it: the disposition is what is done where that does not.
        recall: whether addresses whose mail left unsigned are remembered because of it: outbound this address is put on
            that record, inbound it may change the decision that it is there.
        looks_on: whether what the message answers is put on record, though that changes nothing.
        as_bounce: what is decided instead if the header shows that the message is a bounce though it has a sender; None
            where that makes no difference.
    """

    verdict: Verdict
    disposition: Disposition
    path: PathT
    reason: str
    key_number: int | None = None
    status: bytes | None = None
    exempt: bool = False
    undecided: bool = False
    recall: bool = False
    looks_on: bool = False
    as_bounce: Decision[PathT] | None = None
