"""Who tries tags: failed ones are counted by the network that they come from and the recipient that they are for.

A tag has 24 bits. Whoever tries many for one recipient finds one, and hears nothing that tells him so; but what he
sends with it would be delivered. After some failures within a window, what comes from that network to that recipient
with a good tag is put aside for an administrator, for it may be the guess that hit. Nobody else is concerned: not that
network's mail to other recipients, nor that recipient's mail from other networks. Nothing is refused, nor delayed.

Memory holds a fixed number of pairs. Where there are more, a new pair takes the place of the one with the fewest
failures, the oldest of these, and takes over its count: whoever fills the memory with other pairs cannot make it
forget the one that he is about. A pair whose window is over counts for nothing and goes first.

Source: RFC 6177 section 2 for what one site is given of IPv6, at most a /48; a /24 is the least that is routed of IPv4.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from batv.tag import looks_tagged
from batv.verdict import Verdict

if TYPE_CHECKING:
    from batv.address import Mailbox

__all__ = ["GUESSES", "Guessing", "network_of", "victim"]

GUESSES: Final = frozenset({Verdict.MALFORMED, Verdict.UNKNOWN_KEY, Verdict.BAD_SIGNATURE, Verdict.EXPIRED})
"""What a tag that was tried may come to. A bounce without one is no try."""

_PAIRS: Final = 8192
"""At 400 octets each these are 3 MB."""

_V4_PREFIX: Final = 24
_V6_PREFIX: Final = 48

_Pair: TypeAlias = "tuple[str, bytes]"


class Guessing:
    """Counts failed tags.

    Args:
        max_failures: from how many on a pair is suspect; at least 1.
        window_seconds: for how long failures count after the first; of a suspect pair, after the last.
        pairs: how many pairs of network and recipient are remembered.
    """

    def __init__(self, max_failures: int, window_seconds: float, pairs: int = _PAIRS) -> None:
        self.max_failures: Final = max_failures
        self.window_seconds: Final = window_seconds
        self._pairs = pairs
        self._counts: dict[_Pair, int] = {}
        # By count less one: pairs, each with the begin of its window, in the order in which they came to that count.
        self._levels: list[dict[_Pair, float]] = [{} for _ in range(max_failures)]

    def __len__(self) -> int:
        """Return how many pairs are remembered."""
        return len(self._counts)

    def failed(self, network: str, recipient: bytes, now: float) -> bool:
        """Count a failed tag, and return whether the pair is suspect from now on and was not before.

        Args:
            network: as `network_of` returns it.
            recipient: as `victim` returns it.
            now: seconds of a clock that nobody sets.
        """
        pair = network, recipient
        before = self._alive(pair, now)
        count, begun = before or (0, now)
        if not before and len(self._counts) >= self._pairs:
            count, begun = self._make_room(now)
        if count < self.max_failures:
            count += 1
        if count == self.max_failures:
            begun = now
        self._forget(pair)
        self._counts[pair] = count
        self._levels[count - 1][pair] = begun
        return count == self.max_failures and (before is None or before[0] < count)

    def suspect(self, network: str, recipient: bytes, now: float) -> bool:
        """Whether a good tag in that recipient from that network may have been guessed."""
        found = self._alive((network, recipient), now)
        return found is not None and found[0] >= self.max_failures

    def _alive(self, pair: _Pair, now: float) -> tuple[int, float] | None:
        count = self._counts.get(pair)
        if count is None:
            return None
        begun = self._levels[count - 1][pair]
        if now - begun >= self.window_seconds:
            self._forget(pair)
            return None
        return count, begun

    def _make_room(self, now: float) -> tuple[int, float]:
        """Forget a pair, and return what whoever comes in its place begins with: its count, and its window."""
        fewest: tuple[int, _Pair, float] | None = None
        for number, level in enumerate(self._levels, start=1):
            if level:
                pair, begun = next(iter(level.items()))
                if now - begun >= self.window_seconds:
                    self._forget(pair)
                    return 0, now
                fewest = fewest or (number, pair, begun)
        assert fewest is not None  # noqa: S101 -- called where there are pairs
        count, pair, begun = fewest
        self._forget(pair)
        return count, begun

    def _forget(self, pair: _Pair) -> None:
        count = self._counts.pop(pair, 0)
        if count:
            del self._levels[count - 1][pair]


def network_of(address: str) -> str:
    """Return the network of a client's address, as text; what is no IP address stands for itself."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None:
            return str(IPv6Network((int(found), _V6_PREFIX), strict=False))
        found = found.ipv4_mapped
    return str(IPv4Network((int(found), _V4_PREFIX), strict=False))


def victim(mailbox: Mailbox) -> bytes:
    """Return whose tag was tried: the address without a tag, and without what merely looks like one, in lower case.

    Args:
        mailbox: the address, its tag taken off where it had one.
    """
    local = mailbox.local
    if looks_tagged(mailbox):
        local = local.split(b"=", 2)[-1]
    return local.strip(b'"').lower() + b"@" + mailbox.domain.lower()
