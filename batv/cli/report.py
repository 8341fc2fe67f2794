"""`batv report`: what there is to do before bounces are withheld, from DMARC reports and from the journal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from batv.cli import Site
from batv.cli.output import json_option, print_json, print_table, remark
from batv.errors import BatvError, ReportError
from batv.observe.event import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from ipaddress import IPv4Network, IPv6Network

    from batv.config import Settings
    from batv.report.dmarc import Aggregate
    from batv.report.routes import Routes, Source
    from batv.report.spf import Allowed

__all__ = ["DNS_SECONDS", "Network", "report"]

DNS_SECONDS: Final = 5.0
"""That a command waits for the answer to a question."""

_NO: Final = 1
_NAMED: Final = 5
"""Files that are told one by one; of more of them only the number."""


class Network(click.ParamType["IPv4Network | IPv6Network"]):
    """A network or an address."""

    name = "network"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Network | IPv6Network:
        """Return the network."""
        try:
            return ip_network(str(value))
        except ValueError as error:
            self.fail(f"{error}: write a network such as 192.0.2.0/24 or 2001:db8::/32", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def report() -> None:
    """Find out what would be lost if bounces were withheld, and what to do about it."""


@report.command()
@click.argument("paths", metavar="REPORTS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ours", multiple=True, type=Network(), help="Network of the servers behind the outbound proxy.")
@click.option("--no-dns", is_flag=True, help="Do not ask for SPF records.")
@json_option
@click.pass_context
def routes(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    ours: tuple[IPv4Network | IPv6Network, ...],
    no_dns: bool,
    as_json: bool,
) -> None:
    """Name servers that send your mail and never pass the outbound proxy.

    REPORTS are DMARC aggregate reports: files (XML, gzip, ZIP), mails that hold them, or folders and Maildirs of these.
    The bounces of such mail come back without a tag. Exit status 1 if there is such a server.
    """
    from batv.report.reading import reports_in  # noqa: PLC0415 -- only where reports are read
    from batv.report.routes import Kind, Survey  # noqa: PLC0415 -- as above

    site = ctx.ensure_object(Site)
    settings = site.settings()
    known = (*ours, *_next_hops(settings))
    if not known:
        remark("no server of yours is known: name those behind the outbound proxy with --ours NETWORK")
    survey = Survey(settings.policy, known, _submitters(settings), {} if no_dns else _allowed(settings))
    broken: dict[str, str] = {}
    without = []

    def read() -> Iterator[Aggregate]:
        for name, found in reports_in(paths):
            if found is None:
                without.append(name)
            elif isinstance(found, BatvError):
                broken[name] = str(found)
            else:
                yield found

    result = survey.over(read())
    for name, said in list(broken.items())[:_NAMED]:
        remark(clean(f"{name} is passed over: {said}"))
    if len(broken) > _NAMED:
        remark(f"{len(broken) - _NAMED} more files are passed over")
    if not result.reports:
        raise ReportError(
            "there is no DMARC report that can be read", "name files, folders or a Maildir that hold some"
        )
    if as_json:
        print_json(_routes_as_json(result, survey.allowed, broken, len(without)))
    else:
        _print_routes(result, survey.allowed)
    ctx.exit(_NO if result.of(Kind.ROUTE) else 0)


def _next_hops(settings: Settings) -> Iterator[IPv4Network | IPv6Network]:
    for endpoint in settings.outbound.next_hop if settings.outbound is not None else ():
        try:
            address = ip_address(endpoint.host)
        except ValueError:
            continue  # a name, or a Unix socket
        if address.is_global:
            yield ip_network(address)


def _submitters(settings: Settings) -> frozenset[str]:
    """Return the addresses that have sent mail through the outbound proxy, as far as there is a journal."""
    from batv.report.journal import JournalReader, rotated  # noqa: PLC0415 -- as above

    reader = JournalReader(rotated(Path(settings.state.directory) / "journal.jsonl"))
    return frozenset(str(each.get("client")) for each in reader if each.get("direction") == "outbound")


def _allowed(settings: Settings) -> dict[str, Allowed]:
    from batv.net.resolver import Resolver  # noqa: PLC0415 -- as above
    from batv.report.spf import allowed_by_spf  # noqa: PLC0415 -- as above

    async def ask() -> dict[str, Allowed]:
        resolver = Resolver(settings.dns.servers, DNS_SECONDS)
        names = list(settings.domains)
        found = await asyncio.gather(*(allowed_by_spf(name, resolver) for name in names))
        return dict(zip(names, found, strict=True))

    return asyncio.run(ask())


def _routes_as_json(
    result: Routes, allowed: Mapping[str, Allowed], broken: dict[str, str], without: int
) -> dict[str, object]:
    from batv.report.routes import Kind  # noqa: PLC0415 -- as above

    return {
        "reports": result.reports,
        "repeated": result.repeated,
        "passed_over": {name: clean(said) for name, said in broken.items()},
        "without_report": without,
        "unauthenticated": result.unauthenticated,
        "foreign": result.foreign,
        "sources": {kind.value: [_source_as_json(source) for source in result.of(kind)] for kind in Kind},
        "spf": {
            domain: {
                "published": found.published,
                "unseen": [clean(term) for term in result.unseen.get(domain, ())],
                "remarks": [clean(each) for each in found.remarks],
            }
            for domain, found in allowed.items()
        },
    }


def _source_as_json(source: Source) -> dict[str, Any]:
    return {
        "domain": source.domain,
        "source": str(source.address),
        "messages": source.messages,
        "spf": source.spf,
        "dkim": source.dkim,
        "signers": [clean(name) for name, _ in source.signers.most_common()],
        "reporters": sorted(clean(each) for each in source.reporters),
        "begin": _date(source.begin),
        "end": _date(source.end),
        "allowed_by": clean(source.allowed_by),
        "submits": source.submits,
        "advice": _advice(source),
    }


def _print_routes(result: Routes, allowed: Mapping[str, Allowed]) -> None:
    from batv.report.routes import Kind  # noqa: PLC0415 -- as above

    listed = [*result.of(Kind.ROUTE), *result.of(Kind.UNKNOWN)]
    if listed:
        head = ("domain", "server", "messages", "SPF", "DKIM", "until", "allowed by", "what to do")
        print_table(head, (_source_row(source) for source in listed))
        click.echo()
    told = "report" if result.reports == 1 else "reports"
    click.echo(
        f"{result.reports} {told}: {_messages(result.of(Kind.ROUTE))} messages by {len(result.of(Kind.ROUTE))} servers"
        f" that do not pass the outbound proxy, {_messages(result.of(Kind.UNKNOWN))} by servers that may be forwarders;"
        f" {_messages(result.of(Kind.OURS))} by yours; {_messages(result.of(Kind.ELSEWHERE))} whose bounces go"
        f" elsewhere; {result.unauthenticated} not in alignment"
    )
    for domain, terms in result.unseen.items():
        click.echo(clean(f"{domain}: SPF lets these send too, of whom no report tells: {' '.join(terms)}"))
    for domain, found in allowed.items():
        for each in found.remarks:
            remark(clean(f"SPF of {domain}: {each}"))


def _source_row(source: Source) -> tuple[str, ...]:
    return (
        source.domain,
        str(source.address),
        str(source.messages),
        str(source.spf),
        str(source.dkim),
        _date(source.end),
        clean(source.allowed_by) or "-",
        _advice(source),
    )


def _advice(source: Source) -> str:
    from batv.report.routes import Kind  # noqa: PLC0415 -- as above

    match source.kind:
        case Kind.ROUTE if source.submits:
            return "it sends through the outbound proxy too: let all its mail go that way"
        case Kind.ROUTE:
            return "let it send through the outbound proxy, or with a reverse path of its own"
        case Kind.UNKNOWN:
            return "if it is yours, let it send through the outbound proxy; a forwarder is no concern"
        case _:
            return ""


def _messages(sources: Iterable[Source]) -> int:
    return sum(source.messages for source in sources)


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC).strftime("%Y-%m-%d") if seconds else "-"


_LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999: whoever makes a report can write any number."""
