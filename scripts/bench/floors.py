"""The floors: what the proxies must reach beside the others, whatever the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.bench.codec import CODEC
from scripts.bench.load import IDLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.bench.findings import Results

__all__ = ["PROXIES", "Floor", "floors"]

PROXIES: Final = ("outbound", "inbound")
"""The hops for which there are floors."""

_RATES: Final = (
    ("many-50", "haproxy", 0.5),
    ("many-50", "postfix", 6.0),
    ("many-50", "aiosmtpd", 6.0),
    ("one-50", "haproxy", 0.5),
    ("large-4", "haproxy", 0.8),
)
_PEAK_MIB: Final = 70.0
_ABOVE_IDLE_MIB: Final = 20.0
_CONNECTIONS_MIB: Final = 40.0
_MANY_DOMAINS: Final = "outbound-10000"
_MANY_DOMAINS_CPU: Final = 1.1
_MANY_DOMAINS_WORKLOADS: Final = ("many-50", "latency-10")
_TAGS: Final = tuple(zip(CODEC[1:], (0.6, 0.4), strict=True))


@dataclass(frozen=True, slots=True)
class Floor:
    """What must be reached.

    Attributes:
        what: what was measured.
        found: what was found; None where it was not measured.
        bound: the least that is enough, or the most that is allowed.
        at_least: which of the two the bound is.
    """

    what: str
    found: float | None
    bound: float
    at_least: bool

    @property
    def reached(self) -> bool | None:
        """Whether it was reached; None where it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def floors(results: Results) -> list[Floor]:
    """Return every floor with what was found for it."""
    return [*_rates(results), *_memory(results), *_domains(results), *_tags(results)]


def _rates(results: Results) -> Iterator[Floor]:
    for ours in PROXIES:
        for workload, other, bound in _RATES:
            ratio = results.ratio(ours, other, workload)
            yield Floor(f"rate, {workload}: {ours} / {other}", ratio, bound, at_least=True)


def _memory(results: Results) -> Iterator[Floor]:
    for ours in PROXIES:
        yield Floor(f"peak memory, MiB: {ours}", results.peak_mib(ours), _PEAK_MIB, at_least=False)
        above = results.above_idle_mib(ours)
        yield Floor(f"peak memory above idle, MiB: {ours}", above, _ABOVE_IDLE_MIB, at_least=False)
        connections = results.connections(ours)
        yield Floor(f"{IDLE}, MiB above the empty process: {ours}", connections, _CONNECTIONS_MIB, at_least=False)


def _domains(results: Results) -> Iterator[Floor]:
    for workload in _MANY_DOMAINS_WORKLOADS:
        ratio = results.ratio(_MANY_DOMAINS, "outbound", workload, "cpu_seconds")
        yield Floor(f"CPU, {workload}: {_MANY_DOMAINS} / outbound", ratio, _MANY_DOMAINS_CPU, at_least=False)


def _tags(results: Results) -> Iterator[Floor]:
    for name, bound in _TAGS:
        yield Floor(f"tags {name} / {CODEC[0]}", results.tags_ratio(name), bound, at_least=True)
