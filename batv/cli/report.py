"""`batv report`: what there is to do before bounces are withheld, from DMARC reports and from the journal."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from batv.cli import Site
from batv.cli.output import json_option, print_json, print_table, remark
from batv.cli.values import NETWORK
from batv.errors import BatvError, IoError, ReportError
from batv.observe.event import clean
from batv.report.rollout import Guess, rollout_report
from batv.signing import Obstacle
from batv.wording import counted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from batv.config import Settings
    from batv.report.dmarc import Aggregate
    from batv.report.exemptions import ExemptionsReport, Use
    from batv.report.journal import JournalReader
    from batv.report.rollout import Address, Leak, RolloutReport
    from batv.report.routes import Routes, Source
    from batv.report.spf import Allowed

__all__ = ["DNS_SECONDS", "report"]

DNS_SECONDS: Final = 5.0
"""That a command waits for the answer to a question."""

_NO: Final = 1
_MOST: Final = 3
"""Names of a list that are shown in a table."""

_NAMED: Final = 5
"""Files that are told one by one; of more of them only the number."""


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
def report() -> None:
    """Find out what would be lost if bounces were withheld, and what to do about it."""


@report.command()
@click.argument("paths", metavar="REPORTS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ours", multiple=True, type=NETWORK, help="Network of the servers behind the outbound proxy.")
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


@report.command()
@click.argument("journals", metavar="[JOURNAL...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--days", default=30, show_default=True, type=click.IntRange(1), help="Days to tell of, until today.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Rows of each kind in the table.")
@json_option
@click.pass_context
def rollout(ctx: click.Context, *, journals: tuple[Path, ...], days: int, top: int, as_json: bool) -> None:
    """Name mail that leaves unsigned, and those who get bounces without a tag.

    From the journal of this site and what it was rotated into, or from the JOURNALs that are named, the oldest first.
    Exit status 1 if bounces that look genuine have no good tag.
    """
    site = ctx.ensure_object(Site)
    settings = site.settings()
    reader = _journal(settings, journals)
    result = rollout_report(reader, settings.policy, (site.today() + -days).iso(), settings.probe.sender)
    _remark_damage(reader)
    if as_json:
        print_json(_rollout_as_json(result, reader.damaged))
    else:
        _print_rollout(result, top)
    ctx.exit(_NO if any(domain.genuine for domain in result.domains.values()) else 0)


@report.command()
@click.argument("journals", metavar="[JOURNAL...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--days", default=30, show_default=True, type=click.IntRange(1), help="Days to tell of, until today.")
@json_option
@click.pass_context
def exemptions(ctx: click.Context, *, journals: tuple[Path, ...], days: int, as_json: bool) -> None:
    """Say how much mail met each exemption, and which of them nobody seems to need.

    From the journal of this site and what it was rotated into, or from the JOURNALs that are named. Exit status 1 if
    there is something to do about one.
    """
    from batv.report.exemptions import exemptions_report  # noqa: PLC0415 -- only where exemptions are told of

    site = ctx.ensure_object(Site)
    settings = site.settings()
    reader = _journal(settings, journals)
    today = site.today()
    result = exemptions_report(reader, settings.policy, today, (today + -days).iso())
    _remark_damage(reader)
    if as_json:
        print_json(
            {
                "records": result.records,
                "damaged": reader.damaged,
                "first": result.first or None,
                "last": result.last or None,
                "exemptions": [_use_as_json(use) for use in result.uses],
            }
        )
    else:
        _print_uses(result)
    ctx.exit(_NO if any(map(_use_advice, result.uses)) else 0)


def _journal(settings: Settings, journals: tuple[Path, ...]) -> JournalReader:
    """Return the journals that were named, else that of the site and what it was rotated into.

    Raises:
        IoError: there is none.
    """
    from batv.report.journal import JournalReader, rotated  # noqa: PLC0415 -- only where the journal is read

    journal = Path(settings.state.directory) / "journal.jsonl"
    reader = JournalReader(journals or rotated(journal))
    if not reader.paths:
        raise IoError(f"there is no {journal}", "let mail pass the proxies first, or name a journal")
    return reader


def _remark_damage(reader: JournalReader) -> None:
    if reader.damaged:
        remark(f"{reader.damaged} lines that are no records are passed over")


def _use_as_json(use: Use) -> dict[str, object]:
    found: dict[str, object] = {
        "where": use.where or None,
        "name": use.name,
        "standing": use.standing.value,
        "unsigned": use.hits.unsigned,
        "not_judged": use.hits.not_judged,
        "last": use.hits.last or None,
        "advice": _use_advice(use),
    }
    one = use.exemption
    if one is None:
        return found
    return found | {
        "reason": one.reason,
        "owner": one.owner or None,
        "until": one.until.iso() if one.until is not None else None,
        "senders": [str(each) for each in one.senders],
        "clients": [str(each) for each in one.clients],
        "recipients": [str(each) for each in one.recipients],
    }


def _print_uses(result: ExemptionsReport) -> None:
    if result.uses:
        head = ("exemption", "where", "names", "until", "unsigned", "not judged", "last", "what to do")
        print_table(head, map(_use_row, result.uses))
        click.echo()
    when = f" from {result.first[:10]} to {result.last[:10]}" if result.records else ""
    unsigned = sum(use.hits.unsigned for use in result.uses)
    not_judged = sum(use.hits.not_judged for use in result.uses)
    click.echo(
        f"{counted(result.records, 'record')}{when}: mail to {counted(unsigned, 'recipient')} unsigned,"
        f" bounces to {not_judged} not judged, for an exemption"
    )


def _use_row(use: Use) -> tuple[str, ...]:
    one = use.exemption
    return (
        clean(use.name),
        use.where or "gone",
        _first([*one.senders, *one.clients, *one.recipients]) if one is not None else "-",
        one.until.iso() if one is not None and one.until is not None else "-",
        str(use.hits.unsigned),
        str(use.hits.not_judged),
        use.hits.last[:10] or "never",
        _use_advice(use) or "-",
    )


def _use_advice(use: Use) -> str:
    from batv.report.exemptions import Standing  # noqa: PLC0415 -- as above

    owner = use.exemption.owner if use.exemption is not None else ""
    match use.standing:
        case Standing.ENDED:
            return "it has ended: renew it, or leave it out"
        case Standing.ALIKE:
            return "others have its reason and owner, and its numbers are theirs too: give it another reason"
        case Standing.NOT_MET:
            return f"no mail has met it: {f'ask {clean(owner)}, or ' if owner else ''}leave it out"
        case Standing.MET | Standing.GONE:
            return ""


def _rollout_as_json(result: RolloutReport, damaged: int) -> dict[str, object]:
    return {
        "records": result.records,
        "damaged": damaged,
        "first": result.first or None,
        "last": result.last or None,
        "signed": result.signed,
        "unsigned": [
            {
                "reason": leak.reason,
                "recipients": leak.messages,
                "senders": dict(leak.senders.most_common()),
                "clients": dict(leak.clients.most_common()),
                "last": leak.last,
                "advice": _leak_advice(leak),
            }
            for leak in _by_number(result)
        ],
        "domains": {
            domain.name: {
                "valid": domain.valid,
                "rescued": domain.rescued,
                "genuine": domain.genuine,
                "unknown": domain.unknown,
                "forged": domain.forged,
            }
            for domain in result.domains.values()
        },
        "addresses": [
            {
                "address": address.path,
                "guess": address.guess.value,
                "bounces": address.bounces,
                "withheld": address.withheld,
                "clients": dict(address.clients.most_common()),
                "first": address.first,
                "last": address.last,
                "advice": _address_advice(address),
            }
            for address in _listed_addresses(result)
        ],
    }


def _print_rollout(result: RolloutReport, top: int) -> None:
    if result.leaks:
        print_table(
            ("left unsigned", "recipients", "senders", "by way of", "what to do"),
            (
                (
                    clean(leak.reason),
                    str(leak.messages),
                    _most(leak.senders),
                    _most(leak.clients),
                    _leak_advice(leak) or "-",
                )
                for leak in _by_number(result)[:top]
            ),
        )
        click.echo()
    if result.domains:
        print_table(
            ("bounces of", "good tag", "rescued", "look genuine", "unknown", "forged tag"),
            (
                (
                    clean(each.name),
                    *map(str, (each.valid, each.rescued, each.genuine, each.unknown, each.forged)),
                )
                for each in result.domains.values()
            ),
        )
        click.echo()
    addresses = _listed_addresses(result)
    if addresses:
        shown = [each for guess in Guess for each in result.of(guess)[:top]]
        print_table(
            ("no good tag", "its mail", "bounces", "withheld", "by way of", "what to do"),
            (
                (
                    clean(each.path),
                    each.guess.value,
                    str(each.bounces),
                    str(each.withheld),
                    _most(each.clients),
                    _address_advice(each),
                )
                for each in shown
            ),
        )
        if len(shown) < len(addresses):
            click.echo(f"{len(addresses) - len(shown)} more: --json has them all")
        click.echo()
    unsigned = sum(leak.messages for leak in result.leaks.values())
    when = f" from {result.first[:10]} to {result.last[:10]}" if result.records else ""
    signed = counted(result.signed, "recipient")
    click.echo(f"{counted(result.records, 'record')}{when}: mail to {signed} signed, to {unsigned} unsigned")


def _by_number(result: RolloutReport) -> list[Leak]:
    return sorted(result.leaks.values(), key=lambda leak: (-leak.messages, leak.reason))


def _listed_addresses(result: RolloutReport) -> list[Address]:
    return [address for guess in Guess for address in result.of(guess)]


def _most(counter: Counter[str]) -> str:
    """Return the names that stand there most often."""
    return _first([name for name, _ in counter.most_common()])


def _first(names: Sequence[object]) -> str:
    """Return the first of some names, and how many more there are."""
    named = ", ".join(clean(str(name)) for name in names[:_MOST])
    return named + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _leak_advice(leak: Leak) -> str:
    if leak.on_purpose:
        return ""
    if leak.foreign:
        table = f"[domains.{json.dumps(leak.foreign)}]"
        return f"if it is yours, add {table}; else keep forwarded mail away from the outbound proxy"
    if "require_local_source" in leak.reason:
        return "if your users sent it, have the server in front say XFORWARD SOURCE=LOCAL; else it is forwarded"
    if leak.reason == Obstacle.TAGGED.value:
        return "its bounces come to that tag: let mail pass the outbound proxy once"
    if leak.reason == Obstacle.ROUTING.value:
        return "bounces to these addresses are refused, as all mail: give the senders others, without %, ! and @"
    return "without a [ledger] bounces to these addresses are not judged: keep one, or give the senders shorter ones"


def _address_advice(address: Address) -> str:
    match address.guess:
        case Guess.UNSIGNED:
            return "its mail leaves unsigned, see above: its bounces look genuine"
        case Guess.ANSWERED:
            return "its bounces answer mail that the ledger knows: set rescue for the domain"
        case Guess.IN_OUR_NAME:
            return "mail of yours by a route that does not pass the outbound proxy, or forged with care: look at one"
        case Guess.LATE:
            return "its bounces come after its tags expire: give the key a longer lifetime"
        case Guess.SIGNED:
            return "forged mail, or answers to the address in the header"
        case Guess.NEVER_SEEN:
            return "forged mail, or mail by a route that does not pass the outbound proxy: see 'batv report routes'"


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
    click.echo(
        f"{counted(result.reports, 'report')}: {counted(_messages(result.of(Kind.ROUTE)), 'message')} by"
        f" {counted(len(result.of(Kind.ROUTE)), 'server')}"
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
            return "let it send through the outbound proxy, or exempt its senders"
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
