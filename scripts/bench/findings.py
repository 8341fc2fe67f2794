"""What a run found: medians over the rounds, and comparisons of what was measured in the same round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from scripts.bench.codec import CODEC
from scripts.bench.load import IDLE_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scripts.bench.load import Figures

__all__ = ["Results", "Rounds"]

Rounds: TypeAlias = "dict[str, dict[str, list[Figures]]]"
"""The figures of each round, by hop and workload; a hop has the workloads only with which it was measured."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found. A comparison or median is None where something for it was not measured.

    Attributes:
        idle_mib: memory of each hop before it had anything to do.
        rounds: what the load found.
        connections_mib: memory above the empty process with connections that do nothing, of each round, by hop.
        codec: what the tags found, by round.
    """

    idle_mib: dict[str, float]
    rounds: Rounds
    connections_mib: dict[str, list[float]]
    codec: list[dict[str, float]]

    def median(self, hop: str, workload: str, field: str) -> float | None:
        """Return the median of one of the Figures of a hop."""
        return _median(getattr(each, field) for each in self.rounds.get(hop, {}).get(workload, ()))

    def ratio(self, hop: str, other: str, workload: str, field: str = "rate") -> float | None:
        """Return one of the Figures of a hop, divided by that of another."""
        return _rounded(
            _median(
                None if mine is None or not theirs else mine / theirs
                for mine, theirs in self._pairs(hop, other, workload, field)
            )
        )

    def added(self, hop: str, workload: str, field: str) -> float | None:
        """Return by how much one of the Figures of a hop is more than that of a direct connection."""
        return _rounded(
            _median(
                None if mine is None or theirs is None else mine - theirs
                for mine, theirs in self._pairs(hop, "direct", workload, field)
            )
        )

    def peak_mib(self, hop: str) -> float | None:
        """Return the peak memory with the workload that takes most, in MiB."""
        peaks = (self.median(hop, workload, "peak_mib") for workload in self.rounds.get(hop, ()))
        return max((peak for peak in peaks if peak is not None), default=None)

    def above_idle_mib(self, hop: str) -> float | None:
        """Return by how much the peak is more than the memory of the hop before it had anything to do, in MiB."""
        peak = self.peak_mib(hop)
        return None if peak is None or hop not in self.idle_mib else round(peak - self.idle_mib[hop], 1)

    def connections(self, hop: str) -> float | None:
        """Return the memory above the empty process with connections that do nothing, in MiB for all of them."""
        return _median(self.connections_mib.get(hop, ()))

    def connection_kib(self, hop: str) -> float | None:
        """Return the memory that a connection takes that does nothing, in KiB."""
        found = self.connections(hop)
        return None if found is None else round(found * 1024 / IDLE_CONNECTIONS, 1)

    def tags(self, name: str) -> float | None:
        """Return how many tags a second there are of a kind of CODEC."""
        return _median(each[name] for each in self.codec)

    def tags_ratio(self, name: str) -> float | None:
        """Return how many tags there are of a kind of CODEC for one operation of its first kind."""
        return _rounded(_median(each[name] / each[CODEC[0]] for each in self.codec))

    def _pairs(self, hop: str, other: str, workload: str, field: str) -> list[tuple[float | None, float | None]]:
        """Return one of the Figures of two hops, by round."""
        both = (self.rounds.get(name, {}).get(workload, ()) for name in (hop, other))
        return [(getattr(mine, field), getattr(theirs, field)) for mine, theirs in zip(*both, strict=False)]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
