"""`batv serve`: runs the proxies until SIGTERM."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.errors import ConfigError
from batv.observe.event import Direction
from batv.observe.log import LogWriter

if TYPE_CHECKING:
    from batv.cli import Site
    from batv.config import Settings
    from batv.observe.event import Observer

__all__ = ["serve"]

_DESCRIPTORS: Final = 65_536
"""More than two listeners with the most connections they take by default can need."""


@click.command()
@click.argument("direction", type=click.Choice([direction.value for direction in Direction]), required=False)
@click.option("--state", metavar="DIR", help="Keep journal and quarantine there, whatever the settings say.")
@click.pass_obj
def serve(site: Site, direction: str | None, state: str | None) -> None:
    """Run both proxies, or one of them, until SIGTERM. SIGHUP reloads settings and keys."""
    # Until the service handles it, a reload that is asked for comes to nothing, and must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    directions = [Direction(direction)] if direction is not None else _configured(site)
    log = LogWriter(sys.stderr.fileno())
    _allow_connections()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(site, directions, state, log.observe))
    finally:
        log.close()


def _allow_connections() -> None:
    """Take as many descriptors as the system allows: each client needs two, and the usual 1024 are for 500 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _configured(site: Site) -> list[Direction]:
    settings = site.settings()
    sections = {Direction.OUTBOUND: settings.outbound, Direction.INBOUND: settings.inbound}
    directions = [direction for direction, section in sections.items() if section is not None]
    if not directions:
        raise ConfigError("there is neither an [outbound] nor an [inbound] section", "add one with listen and next_hop")
    return directions


async def _serve(site: Site, directions: list[Direction], state: str | None, observer: Observer) -> None:
    from batv.proxy.service import Service, Source  # noqa: PLC0415 -- after the usage has been checked

    def settings() -> Settings:
        found = site.settings()
        if state is None:
            return found
        elsewhere = found.state.model_copy(update={"directory": str(Path(state).absolute())})
        return found.model_copy(update={"state": elsewhere})

    service = Service(Source(settings, site.store), directions, observer)
    service.handle_signals()
    await service.start()
    await service.run()


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 -- optional, the extra "fast"
    except ImportError:
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory
