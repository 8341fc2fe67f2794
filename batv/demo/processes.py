"""The processes of the tour: `batv serve` as anybody would start it, and the next hop.

Journal, quarantine and log of the tour are in the folder `demo` of the state folder, so that what a site has on record
stays its own. Both processes write to one log file. They end with the tour, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from batv.config import Endpoint
from batv.demo.next_hop import READY
from batv.errors import ConfigError, IoError, UnavailableError
from batv.store.files import make_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from batv.config import Settings

__all__ = ["Company", "company"]

_READY_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.02
_GRACE_SECONDS: Final = 10.0
"""Beyond `drain_seconds`, until a process that was told to end is killed."""

_LISTENING = re.compile(r"listening: direction=(outbound|inbound), address=(\S+)")
_ELSEWHERE: Final = "take the tour in a folder of its own: 'batv init --dir DIR --domain example.com'"


@dataclass(frozen=True, slots=True)
class Company:
    """What runs during the tour.

    Attributes:
        outbound: where the outbound proxy listens.
        inbound: where the inbound proxy listens.
        state: folder of the tour's journal and quarantine.
        mail: folder of the mailboxes.
        log: what the processes wrote.
        processes: the proxies' process and the next hop's.
    """

    outbound: Endpoint
    inbound: Endpoint
    state: Path
    mail: Path
    log: Path
    processes: tuple[_Process, ...]

    async def broken(self) -> UnavailableError:
        """Wait until a process ends by itself, and return what is to be said of it."""
        waiting = {asyncio.create_task(process.ended()): process for process in self.processes}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return waiting[done.pop()].failure()


@asynccontextmanager
async def company(
    config: Path, settings: Settings, users: Iterable[str], correspondents: Iterable[str]
) -> AsyncIterator[Company]:
    """Start the proxies and their next hop; end both when the context is left.

    Args:
        config: the configuration file.
        settings: what it says.
        users: mailboxes of the store.
        correspondents: mailboxes elsewhere.

    Raises:
        ConfigError: the settings are not made for a tour.
        UnavailableError: an address is taken, or a process does not come up.
        CannotCreateError, UnsafeFileError, IoError: the log cannot be written.
    """
    if settings.outbound is None or settings.inbound is None:
        raise ConfigError("the tour needs both proxies, [outbound] and [inbound]", _ELSEWHERE)
    queue = _own(settings.outbound.next_hop[0], "outbound.next_hop")
    store = _own(settings.inbound.next_hop[0], "inbound.next_hop")
    mail = Path(settings.state.directory, "mail")
    state = Path(settings.state.directory, "demo")
    make_folder(state.parent)
    make_folder(state)
    log = state / "log"
    grace = settings.smtp.drain_seconds + _GRACE_SECONDS
    async with AsyncExitStack() as stack:
        serve = ["batv.cli", "--config", str(config), "serve", "--state", str(state)]
        proxies = await _Process.start("the proxies", serve, log, grace)
        stack.push_async_callback(proxies.end)
        lines = await proxies.until("batv/INFO: ready")
        at = {match[1]: Endpoint.parse(match[2]) for match in map(_LISTENING.search, reversed(lines)) if match}
        if set(at) != {"outbound", "inbound"}:
            raise UnavailableError("the proxies do not listen on TCP", _ELSEWHERE)
        options = {"--queue": queue, "--store": store, "--inbound": at["inbound"], "--mail": mail}
        arguments = ["batv.demo.next_hop", *(str(word) for option in options.items() for word in option)]
        arguments += [word for user in users for word in ("--user", user)]
        arguments += [word for correspondent in correspondents for word in ("--correspondent", correspondent)]
        next_hop = await _Process.start("the next hop", arguments, log, _GRACE_SECONDS)
        stack.push_async_callback(next_hop.end)
        # The stack runs backwards: the proxies have to lose their clients before their next hop.
        stack.push_async_callback(proxies.end)
        await next_hop.until(READY)
        yield Company(at["outbound"], at["inbound"], state, mail, log, (proxies, next_hop))


class _Process:
    """A process of ours, and the part of the log that began with it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, begin: int, grace: float) -> None:
        self._name = name
        self._process = process
        self._log = log
        self._begin = begin
        self._grace = grace

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], log: Path, grace: float) -> Self:
        """Start a module of ours.

        Args:
            name: what messages call it.
            arguments: the module and its arguments.
            log: file that its output is added to.
            grace: seconds it gets to end.

        Raises:
            IoError: the log cannot be written.
        """
        try:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise IoError(f"cannot write {log}: {(error.strerror or '').lower()}", "make it writable") from error
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: no module of the working directory stands in for one of ours.
                *(sys.executable, "-P", "-m", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C at the terminal is for the tour, which then ends them in their order.
                process_group=0,
            )
            return cls(name, process, log, os.fstat(output).st_size, grace)
        finally:
            os.close(output)

    async def until(self, text: str) -> list[str]:
        """Return the lines of the log once one of them begins with a text.

        Raises:
            UnavailableError: the process ended, or the line did not come in time.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while True:
                    over = self._process.returncode is not None
                    lines = self._lines()
                    if any(line.startswith(text) for line in lines):
                        return lines
                    if over:
                        raise self.failure()
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            what = f"{self._name} did not come up within {_READY_SECONDS:g} s"
            raise UnavailableError(what, f"see {self._log}") from error

    async def ended(self) -> None:
        """Wait until it has ended."""
        await self._process.wait()

    def failure(self) -> UnavailableError:
        """Return what is to be said of a process that ended by itself: its own last words, where it had some."""
        words = [line.removeprefix("batv: ") for line in self._lines() if line.startswith("batv: ")]
        if words:
            what, _, remedy = words[-1].rpartition(": ")
            return UnavailableError(what, remedy)
        return UnavailableError(f"{self._name} ended with status {self._process.returncode}", f"see {self._log}")

    async def end(self) -> None:
        """End it, if it has not ended yet; kill it if it does not."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(self._grace):
                await self._process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            raise

    def _lines(self) -> list[str]:
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode("utf-8", "replace").splitlines()


def _own(endpoint: Endpoint, setting: str) -> Endpoint:
    """Return where the tour's next hop shall listen: here, where it can get no mail but the tour's."""
    if endpoint.path or endpoint.lmtp or not endpoint.local:
        raise ConfigError(f"{setting} is {endpoint}: the tour plays the next hop itself, on loopback only", _ELSEWHERE)
    return endpoint
