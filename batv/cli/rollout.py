"""`batv rollout`: how far each domain has been switched on, and the administrator's word on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batv.cli.output import json_option, print_json, print_table, remark
from batv.errors import ConfigError, NoSigningKeyError
from batv.rollout import Phase, Progress
from batv.store.rollout import RolloutStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batv.cli import Site
    from batv.config import Settings
    from batv.day import Day

__all__ = ["rollout"]


@click.group(no_args_is_help=False)
def rollout() -> None:
    """Show and move how far domains with rollout = "auto" have been switched on."""


@rollout.command()
@json_option
@click.pass_obj
def status(site: Site, *, as_json: bool) -> None:
    """Show where each domain stands, with the evidence."""
    settings = site.settings()
    found = RolloutStore(Path(settings.state.directory)).read()
    today = site.today()
    rows = []
    for domain in _automatic(settings):
        progress = found.get(domain) or Progress(Phase.OBSERVE, today, reason="the service has not run yet")
        next_day = progress.waits_until(settings.rollout.plan, _lifetime(site, settings, domain))
        evidence = progress.evidence
        rows.append(
            {
                "domain": domain,
                "phase": progress.phase.value,
                "since": progress.since.iso(),
                "first_signed": progress.first_signed.iso() if progress.first_signed is not None else None,
                "held": progress.held,
                "next": progress.forward().value if progress.phase is not Phase.ENFORCE else None,
                "next_from": next_day.iso() if next_day is not None else None,
                "genuine": evidence.genuine,
                "unknown": evidence.unknown,
                "forged": evidence.forged,
                "reason": progress.reason,
                "broken": progress.broken,
            }
        )
    if as_json:
        print_json({"domains": rows})
        return
    if not rows:
        remark('no domain has rollout = "auto": all are in force as they are set')
        return
    head = ("domain", "phase", "since", "first signed", "next", "genuine", "unknown", "forged", "why")
    print_table(head, [_cells(row) for row in rows])


@rollout.command()
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.pass_obj
def advance(site: Site, domains: Sequence[str]) -> None:
    """Go one step forward now, whatever the days and the evidence say; without DOMAIN all of them."""
    _move(site, domains, lambda progress, day: replace(_moved(progress, progress.forward(), day), held=False))


@rollout.command()
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.pass_obj
def back(site: Site, domains: Sequence[str]) -> None:
    """Go one step back now; without DOMAIN all of them."""
    _move(site, domains, lambda progress, day: _moved(progress, progress.back(), day))


@rollout.command()
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.option("--release", is_flag=True, help="Let it go on by itself again.")
@click.pass_obj
def hold(site: Site, domains: Sequence[str], *, release: bool) -> None:
    """Stay where it is until somebody says otherwise; without DOMAIN all of them."""
    reason = "goes on" if release else "held by hand"
    _move(site, domains, lambda progress, _: replace(progress, held=not release, reason=reason))


def _moved(progress: Progress, phase: Phase, day: Day) -> Progress:
    """Return where a domain stands after a move; from the first phase there is no way back, from the last none on."""
    return progress if phase is progress.phase else progress.moved(phase, day, "moved by hand")


def _move(site: Site, domains: Sequence[str], move: Callable[[Progress, Day], Progress]) -> None:
    settings = site.settings()
    automatic = _automatic(settings)
    chosen = [domain.lower() for domain in domains] or automatic
    for domain in chosen:
        if domain not in automatic:
            raise ConfigError(f'{domain} is no domain with rollout = "auto"', f'set it under [domains."{domain}"]')
    if not chosen:
        raise ConfigError('no domain has rollout = "auto"', "set it under the domains that are to be switched on so")
    today = site.today()

    before: dict[str, Progress] = {}

    def changed(found: Mapping[str, Progress]) -> dict[str, Progress]:
        begun = {domain: found.get(domain) or Progress(Phase.OBSERVE, today) for domain in chosen}
        before.update(begun)
        return {**found, **{domain: move(progress, today) for domain, progress in begun.items()}}

    after = RolloutStore(Path(settings.state.directory)).change(changed)
    for domain in chosen:
        progress = after[domain]
        held, same = ", held" if progress.held else "", ", as before" if progress == before[domain] else ""
        click.echo(f"{domain}: {progress.phase.value}{held}{same}")


def _automatic(settings: Settings) -> list[str]:
    return [domain for domain, wanted in settings.domains.items() if wanted.rollout == "auto"]


def _lifetime(site: Site, settings: Settings, domain: str) -> int:
    rings = site.store(settings).read_all([domain.encode()])
    try:
        ring = rings.ring_for(domain.encode())
    except NoSigningKeyError:
        return 0
    return max((key.lifetime for key in ring.keys), default=0)


def _cells(row: Mapping[str, object]) -> tuple[str, ...]:
    following = f"{row['next']} from {row['next_from']}" if row["next_from"] else "held" if row["held"] else "-"
    if row["broken"] and not row["held"]:
        following = "when a probe finds the loop whole"
    return (
        str(row["domain"]),
        str(row["phase"]),
        str(row["since"]),
        str(row["first_signed"] or "not yet"),
        following,
        *(str(row[name]) for name in ("genuine", "unknown", "forged", "reason")),
    )
