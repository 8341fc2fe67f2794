"""A service that is attacked while honest clients use it, and what is measured of it meanwhile."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Final

from tests.support.next_hop import RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["MAX_MEMORY_OCTETS", "MAX_STALL_SECONDS", "Honest", "attacked", "pause"]

MAX_STALL_SECONDS: Final = 0.25
"""For how long the event loop may see to one thing while others wait."""

MAX_MEMORY_OCTETS: Final = 100 << 20
"""Resident octets that an attack may lead to."""

_SECONDS_BETWEEN_MESSAGES: Final = 0.05

_MEASURED: Final = """
import asyncio, os, time
from batv.proxy.service import Service

def waited():
    # For the processor, which others have: no stall of ours.
    with open("/proc/self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9

async def measured(self, run=Service.run):
    loop = asyncio.get_running_loop()
    worst = -1.0
    def tick(due, before):
        nonlocal worst
        now = waited()
        # Not by the loop's clock, which stands still while the loop does.
        stall = time.monotonic() - due - (now - before)
        if stall > worst + 0.001:
            worst = stall
            os.write(2, b"stalled: seconds=%.3f\\n" % stall)
        loop.call_later(0.01, tick, time.monotonic() + 0.01, now)
    loop.call_soon(tick, time.monotonic(), waited())
    await run(self)

Service.run = measured
"""
"""Goes before the code of the process, and writes into its log whenever the event loop stalled longer than before."""


@dataclass
class Honest:
    """What honest clients met.

    Attributes:
        messages: how many messages were taken.
        refused: what was said to clients whose message was not.
        slowest: seconds that the slowest message took.
        memory: most resident octets of the service.
    """

    messages: int = 0
    refused: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def pause(seconds: float) -> None:
    """Let time pass that is part of the attack: a client that takes its time."""
    Event().wait(seconds)


@contextmanager
def attacked(  # noqa: PLR0913 -- what tests change of the service
    folder: Path,
    loop: str,
    record: Callable[[str, object], None],
    settings: str = "",
    *,
    options: str = "",
    before: str = "",
) -> Iterator[tuple[ServiceProcess, Honest]]:
    """Run a service with an honest session until the block ends, and hold the service to its bounds.

    The session begins before the attack, and sends a message now and then, each of which must be taken.

    Args:
        folder: an empty folder.
        loop: name of the event loop.
        record: `record_testsuite_property`.
        settings: more sections of the configuration.
        options: lines for the sections of both proxies.
        before: code that the process runs first.
    """
    honest = Honest()
    over = Event()
    code = before + LOOPS[loop].replace("from batv.cli", f"{_MEASURED}\nfrom batv.cli")
    with (
        RecordingNextHop(keep=False) as next_hop,
        ServiceProcess(folder, next_hop.address, settings, options=options, code=code) as service,
    ):

        def send() -> None:
            with SmtpClient(service.outbound) as client:
                while True:
                    begun = monotonic()
                    heard = client.mail(b"joe@example.com", [b"ann@peer.example"], b"Subject: x\r\n\r\nx\r\n")
                    honest.slowest = max(honest.slowest, monotonic() - begun)
                    honest.memory = max(honest.memory, service.memory())
                    if heard.code == 250:
                        honest.messages += 1
                    else:
                        honest.refused.append(heard.text.decode())
                    if heard.code in {0, 421} or over.wait(_SECONDS_BETWEEN_MESSAGES):
                        return

        sender = Thread(target=send, name="honest client")
        sender.start()
        try:
            yield service, honest
        finally:
            over.set()
            sender.join()
        with SmtpClient(service.outbound) as client:
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
        service.stop()
        assert service.wait() == 0
        stalls = [float(found) for found in re.findall(r"^stalled: seconds=(\S+)$", service.log, re.MULTILINE)]
    assert honest.refused == [], honest.refused
    assert honest.messages
    stall = max(stalls)
    for name, value in (("stall", stall), ("octets", honest.memory), ("slowest honest message", honest.slowest)):
        record(f"{folder.name}: {name}", value)
    odd = [line for line in service.log.splitlines() if not line.startswith(("batv/INFO", "batv/WARNING", "stalled"))]
    assert odd == [], "\n".join(odd[:20])
    assert honest.memory < MAX_MEMORY_OCTETS, honest.memory
    assert stall < MAX_STALL_SECONDS, stall
