"""`batv doctor`: looks at the site as a whole, and says what to do."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.cli import Site
from batv.cli.output import json_option, print_json, print_table
from batv.cli.readiness import readiness
from batv.cli.report import DNS_SECONDS
from batv.cli.values import ADDRESS, NETWORK
from batv.clock import Reading
from batv.day import SECONDS_A_DAY
from batv.errors import BatvError
from batv.keyring import KeyRings
from batv.observe.event import clean
from batv.proxy.service import link_of
from batv.report import health
from batv.report.health import Finding, Grade
from batv.report.journal import JournalReader
from batv.report.rollout import rollout_report
from batv.store.clock import TrustStore
from batv.store.probe import ProbeStore
from batv.verdict import FORGED, Disposition
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from batv.config import Settings

__all__ = ["doctor"]

_NO: Final = 1
_WILDCARD: Final = "*"
_TOLD_DAYS: Final = 7
"""Of the journal: what was wrong before may have been mended since."""


@click.command()
@click.option("--inbound", multiple=True, type=NETWORK, help="Network of the servers before the inbound proxies.")
@click.option("--outbound", multiple=True, type=ADDRESS, help="Address from which your mail leaves.")
@click.option("--zone", "zones", multiple=True, help="List to ask about these, beside those of dnsbl.zones.")
@click.option("--no-dns", is_flag=True, help="Do not ask the DNS.")
@json_option
@click.pass_context
def doctor(  # noqa: PLR0913 -- one argument for each option
    ctx: click.Context,
    *,
    inbound: tuple[IPv4Network | IPv6Network, ...],
    outbound: tuple[IPv4Address | IPv6Address, ...],
    zones: tuple[str, ...],
    no_dns: bool,
    as_json: bool,
) -> None:
    """Look at settings, keys, clock, room, journal, probes, next hops, MX and lists: is the site wired as it must be?

    Nothing is changed, and no mail is sent. Exit status 1 if something is wrong.
    """
    site = ctx.ensure_object(Site)
    settings = site.settings()
    findings = [*_settings(site, settings), *_keys(site, settings), _room(settings), *_tags(site, settings)]
    findings.append(_probe(site, settings))

    async def ask() -> None:
        findings.extend(await _next_hops(settings))
        findings.extend(_left_out(no_dns=no_dns) or await _dns(settings, inbound, outbound, zones))

    asyncio.run(ask())
    faults = sum(finding.grade is Grade.FAULT for finding in findings)
    warnings = sum(finding.grade is Grade.WARNING for finding in findings)
    if as_json:
        print_json({"findings": [_as_json(finding) for finding in findings], "faults": faults, "warnings": warnings})
    else:
        head = ("check", "result", "found", "what to do")
        print_table(head, ((each.check, each.grade.value, clean(each.what), clean(each.remedy)) for each in findings))
        click.echo()
        click.echo(f"{counted(faults, 'fault')}, {warnings} to look at")
    ctx.exit(_NO if faults else 0)


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "result": finding.grade.value,
        "found": clean(finding.what),
        "remedy": clean(finding.remedy),
    }


def _settings(site: Site, settings: Settings) -> Iterator[Finding]:
    found = readiness(site, settings)
    for error in found.errors:
        yield Finding("settings", Grade.FAULT, error.what, error.remedy)
    for warning in found.warnings:
        yield Finding("settings", Grade.WARNING, warning)
    if not found.errors and not found.warnings:
        yield Finding("settings", Grade.OK, f"{site.config_path} has no errors")


def _keys(site: Site, settings: Settings) -> Iterator[Finding]:
    try:
        rings = site.rings(settings)
    except BatvError:
        # What is wrong with them is among the errors of the settings.
        rings = KeyRings(None, {})
        yield Finding("keys", Grade.LEFT_OUT, "they cannot be read")
    else:
        yield from health.keys(settings.policy.domains, rings, site.today(), signs=settings.outbound is not None)
    try:
        trust = TrustStore(Path(settings.state.directory)).read()
    except BatvError as error:
        yield Finding("clock", Grade.FAULT, error.what, error.remedy)
        return
    yield health.clock(Reading(float(site.today().number * SECONDS_A_DAY), 0.0), rings, trust)


def _room(settings: Settings) -> Finding:
    wanted = {domain.disposition(verdict) for domain in settings.policy.domains.values() for verdict in FORGED}
    kept = Disposition.QUARANTINE in wanted or bool(settings.dnsbl.zones)
    return health.room(Path(settings.state.directory), settings.state.quarantine_max_octets if kept else 0)


def _tags(site: Site, settings: Settings) -> Iterator[Finding]:
    # What it was rotated into is left to the report, which may take its time.
    reader = JournalReader([Path(settings.state.directory) / "journal.jsonl"])
    if not reader.paths[0].exists():
        yield Finding("tags", Grade.LEFT_OUT, f"there is no {reader.paths[0]} yet")
        return
    try:
        since = (site.today() + -_TOLD_DAYS).iso()
        found = rollout_report(reader, settings.policy, since, settings.probe.sender)
    except BatvError as error:
        yield Finding("tags", Grade.WARNING, error.what, error.remedy)
    else:
        yield from health.tags(found, _TOLD_DAYS, signs=settings.outbound is not None)


def _probe(site: Site, settings: Settings) -> Finding:
    if settings.probe.sender is None:
        return Finding("probe", Grade.LEFT_OUT, "probe.sender is not set: nobody knows whether bounces come home")
    try:
        return health.probe(ProbeStore(Path(settings.state.directory)).read().outcome, site.today())
    except BatvError as error:
        return Finding("probe", Grade.FAULT, error.what, error.remedy)


async def _next_hops(settings: Settings) -> list[Finding]:
    hostname = settings.smtp.hostname or socket.gethostname()
    findings: list[Finding] = []
    for side, listener in (("outbound", settings.outbound), ("inbound", settings.inbound)):
        if listener is None:
            continue
        try:
            link = link_of(listener)
        except BatvError as error:
            findings.append(Finding("next hop", Grade.FAULT, f"the {side} proxy: {error.what}", error.remedy))
            continue
        findings += await health.next_hops(side, listener.next_hop, link, settings.next_hop, hostname)
    return findings


def _left_out(*, no_dns: bool) -> list[Finding]:
    if not no_dns:
        return []
    return [Finding(check, Grade.LEFT_OUT, "--no-dns was said") for check in ("MX", "lists")]


async def _dns(
    settings: Settings,
    inbound: Sequence[IPv4Network | IPv6Network],
    outbound: Sequence[IPv4Address | IPv6Address],
    zones: Sequence[str],
) -> list[Finding]:
    from batv.net.resolver import Resolver  # noqa: PLC0415 -- not where the DNS is not asked

    try:
        resolver = Resolver(settings.dns.servers, DNS_SECONDS)
    except BatvError as error:
        return [Finding("DNS", Grade.FAULT, error.what, error.remedy)]
    names = [name for name in settings.domains if _WILDCARD not in name]
    found = await asyncio.gather(*(health.exchangers(name, resolver, inbound) for name in names))
    findings = [finding for each in found for finding in each]
    addresses = list(dict.fromkeys((*outbound, *_leaving(settings))))
    asked = list(dict.fromkeys((*settings.dnsbl.zones, *zones)))
    if not asked or not addresses:
        wanted = "no list is named: say --zone ips.backscatterer.org" if not asked else ""
        wanted = wanted or "no address is known from which your mail leaves: say it with --outbound"
        return [*findings, Finding("lists", Grade.LEFT_OUT, wanted)]
    listed = await asyncio.gather(*(health.listings(zone, addresses, resolver) for zone in asked))
    return findings + [finding for each in listed for finding in each]


def _leaving(settings: Settings) -> Iterator[IPv4Address | IPv6Address]:
    for endpoint in settings.outbound.next_hop if settings.outbound is not None else ():
        try:
            address = ip_address(endpoint.host)
        except ValueError:
            continue  # a name, or a Unix socket
        if address.is_global:
            yield address
