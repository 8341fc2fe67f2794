"""What the journal tells of exemptions: how much mail met each, and when the last did.

The journal names an exemption as the settings do: by its reason and owner, or by option and pattern. So those that have
the same name cannot be told apart, and one that was renamed is another.

Counts are recipients, as the journal has a line for each; one that was told to try again comes again, and counts then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from batv.observe.event import clean
from batv.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from batv.day import Day
    from batv.policy import Exemption, Policy

__all__ = ["ExemptionsReport", "Hits", "Standing", "Use", "exemptions_report"]

_MAX_NAMES: Final = 100_000
"""Of exemptions; whoever writes the settings for years has a few hundred."""

_EXEMPT: Final = "exempt: "
_POSTMASTER: Final = "exempt_recipients has postmaster"
"""Everybody has that one, whether anybody writes to it or not: RFC 5321 section 4.5.1 wants it."""


class Standing(Enum):
    """What is to be said of an exemption."""

    MET = "met"
    NOT_MET = "not met"
    ENDED = "ended"  # its last day is past
    ALIKE = "alike"  # another has its name, so that nobody can say which one was met
    GONE = "gone"  # it was met, but the settings do not have it any more


@dataclass(slots=True)
class Hits:
    """Mail that met an exemption.

    Attributes:
        unsigned: recipients to whom it left unsigned.
        not_judged: recipients of bounces that were not judged.
        last: time of the last one, as in the journal.
    """

    unsigned: int = 0
    not_judged: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """An exemption, and the mail that met it.

    Attributes:
        where: its table or option, as in `exemptions.0`; empty where the settings have none.
        name: how the journal names it.
        standing: what is to be said of it.
        hits: the mail.
        exemption: what the table says; None for an option.
    """

    where: str
    name: str
    standing: Standing
    hits: Hits
    exemption: Exemption | None = None


@dataclass(slots=True)
class ExemptionsReport:
    """What the journal tells.

    Attributes:
        uses: the exemptions, in the order of the settings; behind them those that are gone.
        records: how many records were read.
        first: time of the first one.
        last: and of the last one.
    """

    uses: list[Use] = field(default_factory=list)
    records: int = 0
    first: str = ""
    last: str = ""


def exemptions_report(
    records: Iterable[Mapping[str, object]], policy: Policy, today: Day, since: str = ""
) -> ExemptionsReport:
    """Return what records of the journal tell of the exemptions of a policy.

    Args:
        records: the records.
        policy: what is exempt by now.
        today: the day; an exemption whose last day is past has ended.
        since: time before which records tell nothing, as in the journal.
    """
    report = ExemptionsReport()
    found: dict[str, Hits] = {}
    for record in records:
        time = _text(record, "time")
        if time < since:
            continue
        report.records += 1
        report.first = min(report.first or time, time)
        report.last = max(report.last, time)
        name = _name(record)
        if name and (name in found or len(found) < _MAX_NAMES):
            _count(found.setdefault(name, Hits()), record)
    report.uses = list(_uses(policy, today, found))
    return report


def _name(record: Mapping[str, object]) -> str:
    """Return the exemption that a record names; nothing where it names none, or where the client is to come again."""
    if not _text(record, "reply").startswith(("2", "5")):
        return ""
    if record.get("verdict") not in {Verdict.UNSIGNED.value, Verdict.NOT_JUDGED.value}:
        return ""
    return _text(record, "reason").partition(_EXEMPT)[2]


def _count(hits: Hits, record: Mapping[str, object]) -> None:
    if record.get("direction") == "outbound":
        hits.unsigned += 1
    else:
        hits.not_judged += 1
    hits.last = max(hits.last, _text(record, "time"))


def _uses(policy: Policy, today: Day, found: dict[str, Hits]) -> Iterator[Use]:
    tables = [clean(one.name) for one in policy.exemptions.every]
    for number, (name, one) in enumerate(zip(tables, policy.exemptions.every, strict=True)):
        hits = found.get(name, Hits())
        standing = Standing.MET if hits.last else Standing.NOT_MET
        if one.over(today):
            standing = Standing.ENDED
        elif tables.count(name) > 1:
            standing = Standing.ALIKE
        yield Use(f"exemptions.{number}", name, standing, hits, one)
    options = dict(_options(policy))
    for name, where in options.items():
        hits = found.get(name, Hits())
        if hits.last:
            yield Use(where, name, Standing.MET, hits)
        elif name != _POSTMASTER:
            yield Use(where, name, Standing.NOT_MET, hits)
    for name in sorted(found.keys() - options.keys() - set(tables)):
        yield Use("", name, Standing.GONE, found[name])


def _options(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the name of each exemption that is no table, and its option."""
    if policy.exempt_own_domains:
        yield "exempt_own_domains", "outbound.exempt_own_domains"
    for network in policy.exempt_clients:
        yield f"exempt_clients has {network}", "inbound.exempt_clients"
    for domain in policy.domains.values():
        for pattern in domain.exempt_recipients:
            yield f"exempt_recipients has {str(pattern).removesuffix('@')}", "domains.D.exempt_recipients"
        for pattern in domain.exempt_senders:
            yield f"exempt_senders has {pattern}", "domains.D.exempt_senders"


def _text(record: Mapping[str, object], field_name: str) -> str:
    value = record.get(field_name)
    return value if isinstance(value, str) else ""
