"""Which servers send mail of a domain, and which of them never pass the outbound proxy.

What DMARC reports show is judged by where its bounces go. Bounces go to the reverse path, so mail with our From field
and somebody else's reverse path, as many services for newsletters send it, is of no concern. What has our reverse path
and comes from elsewhere than the servers behind the outbound proxy has no tag: its bounces will count as forged.

Source: RFC 7489 sections 3.1 and 7.2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from batv.report.spf import Allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from batv.policy import Policy
    from batv.report.dmarc import Aggregate, Row

__all__ = ["Kind", "Routes", "Source", "Survey"]


class Kind(Enum):
    """How mail came to its recipients."""

    ROUTE = "route"  # from a server that the SPF record lets send, which is none of those behind the outbound proxy
    UNKNOWN = "unknown"  # only the DKIM signature is ours: a forwarder, or a route that the SPF record does not have
    ELSEWHERE = "elsewhere"  # its bounces do not come to us: somebody else's reverse path, or a null one
    OURS = "ours"  # from a server behind the outbound proxy


@dataclass(slots=True)
class Source:
    """What one server has sent for one domain.

    Attributes:
        domain: that of the reverse path; that of the From field where bounces go elsewhere.
        address: the server.
        kind: how its mail came there.
        messages: how many.
        spf: how many of them from a server that might send for the reverse path.
        dkim: how many of them with a good signature in alignment.
        signers: domains of good signatures.
        reporters: who told of it.
        begin: of the first report that tells of it, POSIX seconds.
        end: of the last one.
        allowed_by: the term of the SPF record that lets it send; empty for none.
        submits: whether it has sent mail through the outbound proxy too.
    """

    domain: str
    address: IPv4Address | IPv6Address
    kind: Kind
    messages: int = 0
    spf: int = 0
    dkim: int = 0
    signers: Counter[str] = field(default_factory=Counter)
    reporters: set[str] = field(default_factory=set)
    begin: int = 0
    end: int = 0
    allowed_by: str = ""
    submits: bool = False


@dataclass(frozen=True, slots=True)
class Routes:
    """What the reports say together.

    Attributes:
        sources: servers that sent in alignment, those with the most messages first.
        reports: how many reports there were.
        repeated: how many of them came more than once.
        unauthenticated: messages that were not in alignment: forged, or broken on their way.
        foreign: messages of domains that are none of ours.
        unseen: terms of each domain's SPF record that let nobody send who was reported, and none of our servers.
    """

    sources: tuple[Source, ...]
    reports: int
    repeated: int
    unauthenticated: int
    foreign: int
    unseen: Mapping[str, Sequence[str]]

    def of(self, kind: Kind) -> list[Source]:
        """Return the sources of a kind."""
        return [source for source in self.sources if source.kind is kind]


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known before the reports are read.

    Attributes:
        policy: which domains are ours.
        ours: networks of the servers behind the outbound proxy.
        submitters: addresses that have sent mail through the outbound proxy.
        allowed: the SPF record of each domain, by its name; none where it was not asked for.
    """

    policy: Policy
    ours: Sequence[IPv4Network | IPv6Network]
    submitters: frozenset[str] = frozenset()
    allowed: Mapping[str, Allowed] = field(default_factory=dict)

    def over(self, reports: Iterable[Aggregate]) -> Routes:
        """Return what reports say together; one that came twice counts once."""
        seen: set[tuple[str, str, int]] = set()
        sources: dict[tuple[str, str, Kind], Source] = {}
        repeated = unauthenticated = foreign = 0
        for report in reports:
            name = (report.reporter, report.identifier, report.begin)
            if name in seen:
                repeated += 1
                continue
            seen.add(name)
            for row in report.rows:
                domain = self._domain(row)
                if domain is None:
                    foreign += row.count
                elif not row.aligned:
                    unauthenticated += row.count
                else:
                    kind = self._kind(row, domain)
                    key = (domain, str(row.source), kind)
                    _add(sources.setdefault(key, Source(domain, row.source, kind)), row, report)
        for source in sources.values():
            source.allowed_by = self._allowed(source.domain).term_for(source.address)
            source.submits = str(source.address) in self.submitters
        return Routes(
            tuple(sorted(sources.values(), key=lambda each: (-each.messages, each.domain, str(each.address)))),
            len(seen),
            repeated,
            unauthenticated,
            foreign,
            self._unseen(list(sources.values())),
        )

    def _domain(self, row: Row) -> str | None:
        """Return the domain of ours that a row is about: that of the reverse path before that of the From field."""
        for name in (row.envelope_from, row.header_from):
            if name and self.policy.for_domain(name.encode()) is not None:
                return name
        return None

    def _kind(self, row: Row, domain: str) -> Kind:
        if any(row.source in network for network in self.ours):
            return Kind.OURS
        if row.null_sender or (row.envelope_from and row.envelope_from != domain):
            return Kind.ELSEWHERE
        if row.spf or self._allowed(domain).term_for(row.source):
            return Kind.ROUTE
        return Kind.UNKNOWN

    def _allowed(self, domain: str) -> Allowed:
        return self.allowed.get(domain) or Allowed()

    def _unseen(self, sources: Sequence[Source]) -> dict[str, list[str]]:
        unseen: dict[str, list[str]] = {}
        for domain, allowed in self.allowed.items():
            seen = {source.allowed_by for source in sources if source.domain == domain}
            for permit in allowed.permits:
                if any(net.version == permit.network.version and net.overlaps(permit.network) for net in self.ours):
                    seen.add(permit.term)
            terms = dict.fromkeys(permit.term for permit in allowed.permits)
            if missing := [term for term in terms if term not in seen]:
                unseen[domain] = missing
        return unseen


def _add(source: Source, row: Row, report: Aggregate) -> None:
    source.messages += row.count
    source.spf += row.count if row.spf else 0
    source.dkim += row.count if row.dkim else 0
    for signer in row.signers:
        source.signers[signer] += row.count
    source.reporters.add(report.reporter)
    source.begin = min(source.begin or report.begin, report.begin)
    source.end = max(source.end, report.end)
