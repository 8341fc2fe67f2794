"""A probe of the whole loop: what it found, from which addresses it is sent, and what is told of it.

A probe is a message that a remote site cannot deliver. Its bounce has to come home, as that of any user's mail would; a
bounce without a tag, to the same address, has to fare as the settings say. Each probe is sent from an address of its
own, which nobody can know beforehand: what comes to it is about this message, and nobody else's bounces count.

Probes are no mail of users, so they are no evidence in a rollout, and no report counts them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self

from batv.address import Mailbox
from batv.errors import AddressError

__all__ = ["METRICS", "WORD_DIGITS", "Loop", "Outcome", "ProbeSender", "Probes", "metrics"]

WORD_DIGITS: Final = 12
"""Hex digits of the word in a probe's address; nobody guesses it while the bounce is waited for."""

_STAR: Final = b"*"
_PART: Final = "([0-9a-f]+)"
"""What stands for the star: hex digits in lower case."""


class Loop(Enum):
    """What a probe found, the worst last."""

    WORKS = "works"  # the bounce came home, and the one without a tag fared as it is to
    INCONCLUSIVE = "inconclusive"  # the probe could not be made
    MISJUDGED = "misjudged"  # the bounce came home, but the one without a tag fared in another way than it is to
    BROKEN = "broken"  # the bounce did not come home

    @property
    def severity(self) -> int:
        """How bad it is, to be compared."""
        return list(Loop).index(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a probe ended.

    Attributes:
        loop: what it found.
        reason: why, as a clause.
        sender: the address from which it was sent.
        ended: POSIX seconds.
        bounce_seconds: how long the bounce took; None if none came home.
    """

    loop: Loop
    reason: str
    sender: str
    ended: float
    bounce_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """What is remembered of probes.

    Attributes:
        began: when the last one began, POSIX seconds; 0 if none did.
        outcome: how the last one ended that has ended; None if none has.
        worked: when the last one ended that found the loop working, POSIX seconds; None if none did.
    """

    began: float = 0.0
    outcome: Outcome | None = None
    worked: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeSender:
    """The addresses from which probes are sent: one star in the local part stands for another word each time.

    Attributes:
        local: the local part, with its star.
        domain: the domain.
    """

    local: bytes
    domain: bytes
    _paths: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what is asked for each recipient."""
        before, after = (re.escape(each.decode()) for each in self.local.split(_STAR))
        # As the log and the journal have it: with a tag or without, the signature cut away.
        path = rf"<?(?:prvs2?=[^@=]*=)?{before}{_PART}{after}(?:\+prvs2?=[^@]*)?@{re.escape(self.domain.decode())}>?"
        object.__setattr__(self, "_paths", re.compile(path, re.IGNORECASE))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the addresses that are written `local*@domain`.

        Raises:
            ValueError: the text has another form.
        """
        try:
            mailbox = Mailbox.parse(text.encode())
        except AddressError as error:
            raise ValueError(str(error)) from error
        if mailbox.local.count(_STAR) != 1 or mailbox.quoted:
            raise ValueError(
                "write one star in the local part, as in probe+*@example.com: it is another word each time"
            )
        if not mailbox.ascii:
            raise ValueError("write it in ASCII, the domain as in xn--bcher-kva.example: not every server takes more")
        return cls(mailbox.local, mailbox.domain)

    def __str__(self) -> str:
        """Return the addresses as they are written in the settings."""
        return f"{self.local.decode()}@{self.domain.decode()}"

    def of(self, word: str) -> Mailbox:
        """Return the address with a word, hex digits in lower case, for the star."""
        return Mailbox(self.local.replace(_STAR, word.encode()), self.domain)

    def word_in(self, path: str) -> str | None:
        """Return the word that stands for the star in a path of the log or the journal; None if it is no probe's."""
        match = self._paths.fullmatch(path)
        return match[1].lower() if match is not None else None


METRICS: Final = {
    "batv_probe_success": "1 if the last probe found that the whole loop works, else 0.",
    "batv_probe_broken": "1 if the last probe found that bounces do not come home, else 0.",
    "batv_probe_timestamp_seconds": "When the last probe ended, POSIX seconds.",
    "batv_probe_success_timestamp_seconds": "When the last probe ended that found the loop working, POSIX seconds.",
    "batv_probe_bounce_seconds": "How long the bounce of the last probe took.",
}
"""The metrics, with what each says."""


def metrics(probes: Probes) -> str:
    """Return what is known of probes in Prometheus's text format; what is not known is left out."""
    outcome = probes.outcome
    if outcome is None:
        return ""
    values: dict[str, float | None] = {
        "batv_probe_success": outcome.loop is Loop.WORKS,
        "batv_probe_broken": outcome.loop is Loop.BROKEN,
        "batv_probe_timestamp_seconds": outcome.ended,
        "batv_probe_success_timestamp_seconds": probes.worked,
        "batv_probe_bounce_seconds": outcome.bounce_seconds,
    }
    return "".join(
        f"# HELP {name} {METRICS[name]}\n# TYPE {name} gauge\n{name} {float(value):.15g}\n"
        for name, value in values.items()
        if value is not None
    )
