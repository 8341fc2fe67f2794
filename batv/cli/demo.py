"""`batv demo`: the tour, and a pair of proxies with a next hop to try by hand."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.cli import Site
from batv.cli.output import json_option, print_json, print_table, remark
from batv.demo.maildir import mailbox_folder
from batv.demo.processes import company
from batv.demo.tour import CORRESPONDENTS, Course, Row, Tour, users_of
from batv.errors import ConfigError

if TYPE_CHECKING:
    from batv.config import Settings
    from batv.demo.processes import Company
    from batv.keyring import KeyRing

__all__ = ["demo"]

_BY_SIGNAL: Final = 128  # what a shell adds to the number of the signal that ended a command


@click.command()
@click.option("--once", is_flag=True, help="Stop after the tour; exit status 0 only if every step did what it should.")
@json_option
@click.pass_context
def demo(ctx: click.Context, *, once: bool, as_json: bool) -> None:
    """Take the tour: eight messages through both proxies, what became of each, and a count of all mailboxes.

    The tour plays the next hop of both proxies itself, and the Internet behind it; it is not for a machine whose mail
    servers listen there. Its journal, quarantine and log are in the folder `demo` of the state folder, its mailboxes in
    `mail` beside it.
    """
    site = ctx.ensure_object(Site)
    visit = _Visit(site, once=once, as_json=as_json)
    ctx.exit(asyncio.run(visit.run()))


class _Visit:
    def __init__(self, site: Site, *, once: bool, as_json: bool) -> None:
        self._site = site
        self._config = Path(site.config_path)
        self._settings = site.settings()
        self._domain = _first_domain(self._settings)
        self._ring: KeyRing = site.rings(self._settings).ring_for(self._domain.encode())
        self._today = site.today()
        self._ring.signing_key(self._today)  # raises before anything is started
        self._once = once
        self._as_json = as_json
        self._status: int | None = None

    async def run(self) -> int:
        """Take the tour and return the exit status. A signal ends it, and what it started, at any moment."""
        loop = asyncio.get_running_loop()
        signalled: asyncio.Future[int] = loop.create_future()

        def end(number: int) -> None:
            if not signalled.done():
                signalled.set_result(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        visit = loop.create_task(self._visit())
        await asyncio.wait({visit, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if not visit.done():
            visit.cancel()
            await asyncio.wait({visit})
        if not visit.cancelled():
            return visit.result()
        return self._status if self._status is not None else _BY_SIGNAL + signalled.result()

    async def _visit(self) -> int:
        async with company(self._config, self._settings, users_of(self._domain), CORRESPONDENTS) as running:
            broken = asyncio.create_task(running.broken())
            tour = asyncio.create_task(self._tour(running).take())
            try:
                await asyncio.wait({broken, tour}, return_when=asyncio.FIRST_COMPLETED)
                if not tour.done():
                    raise broken.result()
                rows = tour.result()
                self._show(rows)
                self._status = 0 if all(row.ok for row in rows) else 1
                if self._status:
                    remark(f"not every step did what it should: see {running.log}")
                if self._once:
                    return self._status
                self._hint(running)
                raise await broken
            finally:
                broken.cancel()
                tour.cancel()

    def _tour(self, running: Company) -> Tour:
        policy = self._settings.policy.domains[self._domain.encode()]
        course = Course(
            domain=self._domain,
            on_forged=policy.on_forged,
            by_verdict=policy.by_verdict,
            ring=self._ring,
            style=policy.style or self._settings.tags.style,
            today=self._today,
            outbound=running.outbound,
            inbound=running.inbound,
            state=running.state,
            mail=running.mail,
        )
        return Tour(course, self._tell)

    def _tell(self, text: str) -> None:
        # With --json the standard output is for the program that asked.
        click.echo(text, err=self._as_json)

    def _show(self, rows: list[Row]) -> None:
        if self._as_json:
            fields = ("step", "sent_to", "expected", "happened", "ok")
            print_json({"rows": [{name: getattr(row, name) for name in fields} for row in rows]})
        else:
            click.echo()
            cells = ((row.step, row.sent_to, row.expected, row.happened, "yes" if row.ok else "NO") for row in rows)
            print_table(("step", "sent to", "expected", "happened", "ok"), cells)
        sys.stdout.flush()

    def _hint(self, running: Company) -> None:
        joe = users_of(self._domain)[0]
        batv = f"{_own_command()} --config {shlex.quote(str(self._config.absolute()))}"
        letter = "printf 'Subject: hello\\n\\nhello\\n' | curl -sST -"
        journal = shlex.quote(str(running.state / "journal.jsonl"))
        for line in (
            "",
            "The proxies and their next hop go on until Ctrl-C.",
            "",
            f"  outbound   {running.outbound}",
            f"  inbound    {running.inbound}",
            f"  mailboxes  {running.mail}",
            f"  journal    {running.state / 'journal.jsonl'}",
            f"  log        {running.log}",
            "",
            f"To try by hand: mail that bounces (only {CORRESPONDENTS[0]} would get it),",
            "",
            f"  {letter} smtp://{running.outbound} \\",
            f"    --mail-from {joe} --mail-rcpt nobody@remote.example",
            "",
            "a forged bounce, and the address to which a genuine one would go:",
            "",
            f"  {letter} smtp://{running.inbound} \\",
            f"    --mail-from '' --mail-rcpt {joe}",
            f"  {batv} sign {joe}",
            "",
            "What became of it: the last records of the journal, and joe's mailbox.",
            "",
            f"  tail -n 3 {journal}",
            f"  ls -t {shlex.quote(str(mailbox_folder(running.mail, joe) / 'new'))}",
        ):
            self._tell(line)


def _own_command() -> str:
    """Return how this command is called from any folder."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "batv":
        return f"{shlex.quote(sys.executable)} -m batv.cli"
    found = shutil.which("batv")
    return "batv" if found is not None and Path(found).absolute() == called else shlex.quote(str(called))


def _first_domain(settings: Settings) -> str:
    for name in settings.domains:
        if name.isascii() and not name.startswith("*."):
            return name
    raise ConfigError(
        "there is no [domains] section with a name in ASCII", "add one for a domain that the tour shall be about"
    )
