"""How octets come: a network cuts them where it likes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["by_chance", "ways"]

_OCTET_BY_OCTET: Final = 300
"""Longest octets that come one by one too: of longer ones it takes its time, and says no more."""


def ways(octets: bytes) -> Iterator[Sequence[bytes]]:
    """Yield the octets whole, one by one, and in a few pieces, which for the same octets are always the same."""
    yield (octets,)
    if len(octets) <= _OCTET_BY_OCTET:
        yield [octets[at : at + 1] for at in range(len(octets))]
    yield by_chance(octets)


def by_chance(octets: bytes) -> Sequence[bytes]:
    """Return the octets in a few pieces, which for the same octets are always the same."""
    chance = random.Random(octets)
    cuts = sorted(chance.randrange(len(octets) + 1) for _ in range(chance.randrange(1, 8)))
    return [octets[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
