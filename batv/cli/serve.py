"""`batv serve`: runs the proxies until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.errors import ConfigError
from batv.observe.event import Direction, Level, Notice
from batv.observe.log import LogWriter, log_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.cli import Site
    from batv.config import Settings
    from batv.observe.event import Event, Observer
    from batv.proxy.service import Source
    from batv.proxy.workers import Worker

__all__ = ["serve"]

_DESCRIPTORS: Final = 65_536
"""More than two listeners with the most connections they take by default can need."""

_SAYING_MILLISECONDS: Final = 2000
"""For how long the supervisor waits for the reader of the log."""


@click.command()
@click.argument("direction", type=click.Choice([direction.value for direction in Direction]), required=False)
@click.option("--state", metavar="DIR", help="Keep journal and quarantine there, whatever the settings say.")
@click.pass_obj
def serve(site: Site, direction: str | None, state: str | None) -> None:
    """Run both proxies, or one of them, until SIGTERM. SIGHUP reloads settings and keys."""
    # Until the service handles it, a reload that is asked for comes to nothing, and must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = _with_state(site, state)
    found = settings()
    directions = [Direction(direction)] if direction is not None else _configured(found)
    _allow_connections()
    # What a worker needs is loaded before it is forked, and its threads begin after that.
    from batv.proxy.service import Source  # noqa: PLC0415 -- after the usage has been checked

    loop_factory = _loop_factory()
    worker = _forked(settings, directions) if found.smtp.workers > 1 else None
    log = LogWriter(sys.stderr.fileno())
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(Source(settings, site.store), directions, log.observe, worker))
    finally:
        log.close()


def _allow_connections() -> None:
    """Take as many descriptors as the system allows: each client needs two, and the usual 1024 are for 500 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _with_state(site: Site, state: str | None) -> Callable[[], Settings]:
    def settings() -> Settings:
        found = site.settings()
        if state is None:
            return found
        elsewhere = found.state.model_copy(update={"directory": str(Path(state).absolute())})
        return found.model_copy(update={"state": elsewhere})

    return settings


def _configured(settings: Settings) -> list[Direction]:
    sections = {Direction.OUTBOUND: settings.outbound, Direction.INBOUND: settings.inbound}
    directions = [direction for direction, section in sections.items() if section is not None]
    if not directions:
        raise ConfigError("there is neither an [outbound] nor an [inbound] section", "add one with listen and next_hop")
    return directions


def _forked(settings: Callable[[], Settings], directions: list[Direction]) -> Worker:
    """Return in each worker; the supervisor exits here, when its time has come."""
    from batv.proxy.workers import Supervisor  # noqa: PLC0415 -- one process needs none

    outcome = Supervisor(settings, directions, _say).run()
    if isinstance(outcome, int):
        click.get_current_context().exit(outcome)
    return outcome


def _say(event: Event) -> None:
    """Write a line of the supervisor, which has no thread for that, unless the reader of the log stalls."""
    level = event.level if isinstance(event, Notice) else Level.INFO
    standard_error = sys.stderr.fileno()
    poll = select.poll()
    poll.register(standard_error, select.POLLOUT)
    if poll.poll(_SAYING_MILLISECONDS):
        with suppress(OSError):
            os.write(standard_error, f"batv/{level.name}: {log_line(event)}\n".encode("utf-8", "backslashreplace"))


async def _serve(source: Source, directions: list[Direction], observer: Observer, worker: Worker | None) -> None:
    from batv.proxy.service import Service  # noqa: PLC0415 -- as above

    if worker is not None:
        source = replace(source, listeners=worker.listeners)
        observer = worker.marked(observer)
    service = Service(source, directions, observer)
    service.handle_signals()
    await service.start()
    # What the start has made stays: no search for garbage has to look through it again.
    gc.collect()
    gc.freeze()
    if worker is not None:
        worker.listens(service.stop)
    await service.run()


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 -- optional, the extra "fast"
    except ImportError:
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory
