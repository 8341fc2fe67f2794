"""`batv clock`: whether the clock can be believed, and the administrator's word that it can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batv.cli.output import json_option, print_fields, print_json, remark
from batv.clock import ClockJudge, Reading, Trust, newest_day
from batv.day import SECONDS_A_DAY
from batv.store.clock import TrustStore

if TYPE_CHECKING:
    from batv.cli import Site

__all__ = ["clock"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def clock(ctx: click.Context, *, as_json: bool) -> None:
    """Show the day, the newest key's, and whether they agree; exit 1 if they do not.

    Whether the clock has jumped only the running service knows: its log says so.
    """
    if ctx.invoked_subcommand is not None:
        return
    site: Site = ctx.obj
    settings = site.settings()
    trust = TrustStore(Path(settings.state.directory)).read()
    newest, today = newest_day(site.rings(settings)), site.today()
    judge = ClockJudge()
    judge.trust(trust)
    doubt = judge.doubt(Reading(today.number * SECONDS_A_DAY, 0.0), newest)
    if as_json:
        days = {"day": today, "newest_key": newest, "trusted_on": trust.day if trust is not None else None}
        print_json({**{name: day and day.iso() for name, day in days.items()}, "doubt": doubt or None})
    else:
        print_fields(
            [
                ("day", f"{today} (UTC)"),
                ("newest key", str(newest or "none")),
                ("trusted on", str(trust.day) if trust is not None else "never said"),
                ("believed", f"no: {doubt}" if doubt else "yes, unless the log of the service says that it has jumped"),
            ]
        )
    ctx.exit(1 if doubt else 0)


@clock.command()
@click.pass_obj
def trust(site: Site) -> None:
    """Say that the clock is right: the service believes it from now on, until it jumps again."""
    settings = site.settings()
    word = Trust(site.today(), newest_day(site.rings(settings)))
    TrustStore(Path(settings.state.directory)).write(word)
    click.echo(f"the clock is right: it is {word.day} (UTC)")
    remark("a running service hears of it within 5 seconds")
