"""Whether a site is wired as it must be: what the proxies themselves cannot see while they run.

Each check returns findings, and none changes anything: next hops are greeted and left, the DNS is asked, no mail is
sent. Whether port 25 of a host leads to the inbound proxy cannot be seen from outside without a bounce, so an MX counts
as right where its address is of this host, or was named.

Source: RFC 5321 section 5.1 on MX records; RFC 7505 on domains without mail; RFC 5782 section 5 on lists that work.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.clock import ClockJudge, newest_day
from batv.day import Day
from batv.errors import NoSigningKeyError
from batv.net.connection import IdentityFault, LoginFault, NextHopFault, TlsFault
from batv.net.destination import Destination
from batv.net.dnsbl import asked_about, lists
from batv.net.resolver import DnsFault
from batv.probe import Loop
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Network, IPv6Address, IPv6Network

    from batv.clock import Reading, Trust
    from batv.config import Endpoint, NextHopSettings
    from batv.keyring import KeyRing, KeyRings
    from batv.net.destination import Link
    from batv.net.resolver import Resolver
    from batv.probe import Outcome
    from batv.report.rollout import Domain, RolloutReport

__all__ = ["Finding", "Grade", "clock", "exchangers", "keys", "listings", "next_hops", "probe", "room", "tags"]

_HOP_SECONDS: Final = 5.0
_OLD_DAYS: Final = 365
"""The README has keys rotated once a year."""

_WRAP_DAYS: Final = 1000
"""After which the day in a tag comes round: an old tag of a key that still verifies is good again."""

_SOON_DAYS: Final = 14
_LEAKS: Final = 5
"""Reasons that are told."""

_LITTLE_OCTETS: Final = 1 << 30
_NONE_OCTETS: Final = 16 << 20
_FEW_FILES: Final = 1000
_OLD_PROBE_DAYS: Final = 2
"""Probes are made once a day."""

_TEST_ENTRY: Final = IPv4Address("127.0.0.2")
"""Which every list has. Source: RFC 5782 section 5."""


class Grade(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # it works, and should be looked at
    FAULT = "fault"  # something is lost, or let through, as it is
    LEFT_OUT = "left out"  # not looked at, for want of something


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        check: what was looked at, a word.
        grade: how it ended.
        what: one clause.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    grade: Grade
    what: str
    remedy: str = ""


def clock(now: Reading, rings: KeyRings, trust: Trust | None) -> Finding:
    """Return whether the clock can be right; whether it has jumped only the running service knows."""
    judge = ClockJudge()
    judge.trust(trust)
    doubt = judge.doubt(now, newest_day(rings))
    if doubt:
        return Finding("clock", Grade.FAULT, doubt, "set the clock, or run 'batv clock trust' if it is right")
    return Finding("clock", Grade.OK, "it is not earlier than the newest key")


def keys(domains: Iterable[bytes], rings: KeyRings, today: Day, *, signs: bool) -> Iterator[Finding]:
    """Yield what there is to say of the ring of each domain, once where domains share one.

    Args:
        domains: the domains.
        rings: their rings.
        today: the day.
        signs: whether there is an outbound proxy, which needs a signing key.
    """
    told: set[str] = set()
    for domain in domains:
        try:
            ring = rings.ring_for(domain)
        except NoSigningKeyError as error:
            yield Finding("keys", Grade.FAULT, error.what, error.remedy)
            continue
        if ring.name not in told:
            told.add(ring.name)
            yield from _ring(ring, today, signs=signs)


def _ring(ring: KeyRing, today: Day, *, signs: bool) -> Iterator[Finding]:
    signing = next((key for key in ring.keys if key.signs(today)), None)
    if signs and signing is None:
        yield Finding("keys", Grade.FAULT, f"no key of {ring.name} signs on {today}", ring.signing_remedy)
        return
    found = []
    ends = ring.unsigned_from(today)
    if signs and ends is not None and ends - today <= _SOON_DAYS:
        found.append(Finding("keys", Grade.WARNING, f"no key of {ring.name} signs from {ends} on", ring.signing_remedy))
    for key in ring.keys:
        age = today - (key.signs_from or key.created)
        if not key.verifies(today):
            continue
        if age > _WRAP_DAYS - key.longest:
            said = f"key {key.number} of {ring.name} is {age} days old: tags of its first days are good again"
            found.append(Finding("keys", Grade.FAULT, said, "rotate it with 'batv key rotate'"))
        elif key is signing and age > _OLD_DAYS:
            said = f"key {key.number} of {ring.name} has signed for {age} days"
            found.append(Finding("keys", Grade.WARNING, said, "rotate it once a year, with 'batv key rotate'"))
    yield from found
    if not found:
        number = f"key {signing.number} signs" if signing is not None else "it verifies"
        yield Finding("keys", Grade.OK, f"{ring.name}: {number}")


def tags(report: RolloutReport, days: int, *, signs: bool) -> Iterator[Finding]:
    """Yield what the journal tells of mail that leaves unsigned, and of bounces that are lost, or would be.

    Args:
        report: what the journal tells.
        days: of how many days.
        signs: whether there is an outbound proxy, which would have signed.
    """
    remedy = "see 'batv report rollout'"
    leaks = sorted(
        (leak for leak in report.leaks.values() if not leak.on_purpose), key=lambda leak: (-leak.messages, leak.reason)
    )
    for leak in leaks[:_LEAKS]:
        said = f"mail to {counted(leak.messages, 'recipient')} left unsigned in {days} days: {leak.reason}"
        yield Finding("tags", Grade.WARNING, said, remedy)
    for domain in report.domains.values():
        if domain.genuine:
            look = "looks" if domain.genuine == 1 else "look"
            told = f"{counted(domain.genuine, 'bounce')} to {domain.name} {look} genuine"
            said = f"{told} and had no good tag, in {days} days"
            yield Finding("tags", Grade.WARNING, said, remedy)
    bounces = sum(_bounces(domain) for domain in report.domains.values())
    if signs and not report.signed:
        came = "a bounce came" if bounces == 1 else f"{counted(bounces, 'bounce')} came"
        said = f"no mail was signed in {days} days" + (f", though {came}" if bounces else "")
        remedy = "let what your users send pass the outbound proxy; if it does so on another host, all is well"
        yield Finding("tags", Grade.WARNING, said, remedy)
    elif not leaks and not any(domain.genuine for domain in report.domains.values()):
        signed = (
            f"mail to {counted(report.signed, 'recipient')} was signed"
            if signs
            else "no genuine bounce lacked a good tag"
        )
        yield Finding("tags", Grade.OK, f"{signed} in {days} days")


def _bounces(domain: Domain) -> int:
    return domain.valid + domain.rescued + domain.genuine + domain.unknown + domain.forged


def room(folder: Path, quarantine_octets: int) -> Finding:
    """Return whether there is room for journal and quarantine.

    Args:
        folder: the state folder; where it is not there yet, the folder above it that is.
        quarantine_octets: what the quarantine may take.
    """
    there = next(each for each in (folder, *folder.parents, Path("/")) if each.is_dir())
    try:
        found = os.statvfs(there)
    except OSError as error:
        return Finding("room", Grade.FAULT, f"cannot look at {there}: {error.strerror}", "mend the file system")
    free = found.f_bavail * found.f_frsize
    what = f"{free >> 20} MiB are free in {folder}"
    if free < _NONE_OCTETS or (found.f_files and found.f_favail < _FEW_FILES):
        said = what if free < _NONE_OCTETS else f"{found.f_favail} files can still be made in {folder}"
        return Finding("room", Grade.FAULT, said, "make room: without it, forged bounces are answered 451")
    if free < _LITTLE_OCTETS or free < quarantine_octets:
        return Finding(
            "room", Grade.WARNING, what, f"make room, the quarantine alone may take {quarantine_octets >> 20} MiB"
        )
    return Finding("room", Grade.OK, what)


def probe(outcome: Outcome | None, today: Day) -> Finding:
    """Return how the last probe of the loop ended, and whether it was lately.

    Args:
        outcome: how it ended; None where there was none.
        today: the day.
    """
    if outcome is None:
        return Finding("probe", Grade.WARNING, "the loop was never probed", "run 'batv probe', or start its timer")
    day = Day.at(outcome.ended)
    said = f"the probe of {day}: {outcome.loop.value}: {outcome.reason}"
    if outcome.loop in {Loop.BROKEN, Loop.MISJUDGED}:
        return Finding("probe", Grade.FAULT, said, "mend that, and run 'batv probe' again")
    if today - day > _OLD_PROBE_DAYS:
        return Finding("probe", Grade.WARNING, f"the last probe was on {day}", "look why its timer does not run")
    if outcome.loop is Loop.INCONCLUSIVE:
        return Finding("probe", Grade.WARNING, said, "mend that, or wait for the next one")
    return Finding("probe", Grade.OK, said)


async def next_hops(
    side: str, endpoints: Sequence[Endpoint], link: Link, settings: NextHopSettings, hostname: str
) -> list[Finding]:
    """Return which next hops of a proxy answer a connection, a greeting and what the settings have said before MAIL."""
    patient = settings.model_copy(update={"connect_seconds": min(settings.connect_seconds, _HOP_SECONDS)})

    async def greet(endpoint: Endpoint) -> NextHopFault | None:
        try:
            connection = await Destination(endpoint, link, patient, hostname.encode("ascii", "replace")).connect(None)
        except NextHopFault as fault:
            return fault
        connection.close()
        return None

    answers = await asyncio.gather(*map(greet, endpoints))
    serves = None in answers
    findings = []
    for endpoint, fault in zip(endpoints, answers, strict=True):
        subject = f"the {side} proxy's next hop {endpoint}"
        if fault is None:
            findings.append(Finding("next hop", Grade.OK, f"{subject} answers"))
        elif serves:
            remedy = f"{_hop_remedy(side, fault)}; another one serves"
            findings.append(Finding("next hop", Grade.WARNING, f"{subject}: {fault.what}", remedy))
        else:
            findings.append(Finding("next hop", Grade.FAULT, f"{subject}: {fault.what}", _hop_remedy(side, fault)))
    return findings


def _hop_remedy(side: str, fault: NextHopFault) -> str:
    """Return what to do about a next hop that does not serve us."""
    if isinstance(fault, IdentityFault):
        return f"{fault.remedy} in {side}.next_hop_identity"
    if isinstance(fault, TlsFault):
        return f"mend its certificate or its TLS, or set {side}.next_hop_tls, next_hop_tls_ca or next_hop_tls_name"
    if isinstance(fault, LoginFault):
        return f"put right user and password in {side}.next_hop_credentials, then reload"
    return f"start it, or set {side}.next_hop"


async def exchangers(domain: str, resolver: Resolver, inbound: Sequence[IPv4Network | IPv6Network]) -> list[Finding]:
    """Return where mail for a domain is delivered to, and whether that is before an inbound proxy.

    Args:
        domain: the domain.
        resolver: who answers.
        inbound: networks of the servers before the inbound proxies; this host is one without being named.
    """
    try:
        hosts = (await resolver.ask(domain, "MX")).values
        if hosts and not any(hosts):
            said = f"{domain} takes no mail, says its MX record: bounces to its signed addresses never come"
            return [Finding("MX", Grade.FAULT, said, "give it an MX, or do not sign for it")]
        found = [(host or domain, await _addresses(host or domain, resolver)) for host in hosts or (domain,)]
    except DnsFault as fault:
        return [Finding("MX", Grade.WARNING, f"{domain}: {fault.what}", fault.remedy)]
    findings = []
    right = []
    for host, addresses in found:
        for address in addresses:
            if any(address in network for network in inbound) or _is_here(address):
                right.append(f"{host} [{address}]")
            else:
                said = (
                    f"{domain} has its mail delivered to {host} [{address}], which is not known to lead to an inbound"
                )
                remedy = "wire it to one, or say with --inbound that it is: else its bounces are not judged"
                findings.append(Finding("MX", Grade.FAULT, f"{said} proxy", remedy))
    if not right and not findings:
        said = f"{domain} has no MX with an address: bounces to its signed addresses never come"
        return [Finding("MX", Grade.FAULT, said, "mend its MX records, or do not sign for it")]
    if right:
        findings.append(Finding("MX", Grade.OK, f"{domain}: {', '.join(right)}"))
    return findings


async def listings(zone: str, addresses: Sequence[IPv4Address | IPv6Address], resolver: Resolver) -> list[Finding]:
    """Return whether a list works, and which of our addresses it has."""
    try:
        works, _ = await lists(resolver, zone, _TEST_ENTRY)
        if not works:
            said = f"{zone} does not list 127.0.0.2, as every list that works does"
            return [
                Finding("lists", Grade.WARNING, said, "take it out of dnsbl.zones, or look whether its name is right")
            ]
        found = [
            address for address in addresses if asked_about(str(address)) and (await lists(resolver, zone, address))[0]
        ]
    except DnsFault as fault:
        return [Finding("lists", Grade.WARNING, fault.what, fault.remedy)]
    if found:
        said = f"{zone} has {' and '.join(map(str, found))}, from which your mail leaves: your bounces are refused"
        remedy = "find out which server there makes bounces for forged mail, and have it refuse unknown users instead"
        return [Finding("lists", Grade.FAULT, said, remedy)]
    return [Finding("lists", Grade.OK, f"{zone} has none of {', '.join(map(str, addresses))}")]


async def _addresses(host: str, resolver: Resolver) -> list[IPv4Address | IPv6Address]:
    four, six = await asyncio.gather(resolver.ask(host, "A"), resolver.ask(host, "AAAA"))
    return [ip_address(value) for value in (*four.values, *six.values)]


def _is_here(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of this host's, by which others reach it: no other may be bound."""
    if address.is_loopback or address.is_unspecified:
        return False
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 -- IPv4
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
