"""`batv serve` as administrators run it: a process of its own, with a folder, keys and free ports of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, Final

import psutil

from batv.address import Mailbox
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.signing import sign
from batv.store.rings import RingStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

__all__ = ["LOOPS", "SECRET", "SERVE", "ServiceProcess", "full_disk", "today"]

SECRET: Final = b"canary-secret-of-32-octets-long!"
"""The secret of the ring's key 0."""

SERVE: Final = "from batv.cli import main; main()"
"""What the process runs; a test may put something before it."""

LOOPS: Final = {"as-installed": SERVE, "asyncio": f"import sys; sys.modules['uvloop'] = None; {SERVE}"}
"""What the process runs for each event loop: uvloop where it is installed, or asyncio's own whatever is installed."""

_CHECKOUT: Final = Path(__file__).parents[2]
_SECONDS: Final = 60.0
_LISTENING = re.compile(r"listening: direction=(\w+), address=(\S+):(\d+)(?P<tls>, tls=yes)?")


def today() -> Day:
    """Return the day in UTC, as the service sees it."""
    return Day.at(time.time())


@contextmanager
def full_disk(octets: int, pid: int = 0) -> Iterator[None]:
    """Let no file of a process grow beyond so many octets: a write stops short there, as on a disk that is full.

    Args:
        octets: the limit; it holds for each file by itself.
        pid: the process; 0 for this one.
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


class ServiceProcess:
    """`batv serve`, for as long as the context lasts.

    Args:
        folder: where configuration, keys and state are.
        next_hop: address of the next hop of both proxies.
        settings: more sections of the configuration.
        on_forged: what forged bounces to example.com get.
        options: lines for the sections of both proxies.
        code: what the interpreter runs.
    """

    def __init__(  # noqa: PLR0913 -- what tests change of the configuration
        self,
        folder: Path,
        next_hop: str,
        settings: str = "",
        *,
        on_forged: str = "discard",
        options: str = "",
        code: str = SERVE,
    ) -> None:
        self.folder: Final = folder
        self.config: Final = folder / "batv.toml"
        self.journal_path: Final = folder / "var/journal.jsonl"
        self.next_hop: Final = next_hop
        self.ring = KeyRing(today()).with_newcomer(Key(0, Secret(SECRET), today()), today())
        self._code: Final = code
        self._lines: list[str] = []
        self._heard: Final = Condition()
        self._ended = False
        self._process: subprocess.Popen[str] | None = None
        self._reader: Thread | None = None
        self.configure(settings, on_forged=on_forged, options=options)
        RingStore(folder / "keys").change(None, lambda old: old or self.ring)

    def __enter__(self) -> Self:
        """Start; both proxies listen when this returns."""
        self.start()
        self.wait_for_log(r"\bready\b")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it if the test has not."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS)
            finally:
                self._process.kill()
        if self._reader is not None:
            self._reader.join()

    def configure(
        self,
        settings: str = "",
        *,
        on_forged: str = "discard",
        listen: str = "127.0.0.1:0",
        domains: Sequence[str] = ("example.com",),
        options: str = "",
    ) -> None:
        """Write the configuration."""
        tables = "".join(f'\n[domains."{domain}"]\non_forged = "{on_forged}"\n' for domain in domains)
        self.config.write_text(
            f'[outbound]\nlisten = ["127.0.0.1:0"]\nnext_hop = "{self.next_hop}"\n{options}\n'
            f'[inbound]\nlisten = ["{listen}"]\nnext_hop = "{self.next_hop}"\n{options}{tables}\n{settings}'
        )

    def start(self) -> None:
        """Start the process."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._code, "--config", str(self.config), "serve"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = Thread(target=self._read, name="log", daemon=True)
        self._reader.start()

    # What it says.

    @property
    def log(self) -> str:
        """All that it has written to standard error."""
        with self._heard:
            return "".join(self._lines)

    def wait_for_log(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Return the first match of a pattern in the log, once there is one.

        Args:
            pattern: what to look for.
            after: characters of the log to pass over, as `len(service.log)` gave them.
        """
        with self._heard:
            found: re.Match[str] | None = None

            def look() -> bool:
                nonlocal found
                found = re.search(pattern, "".join(self._lines)[after:], re.MULTILINE)
                return found is not None or self._ended

            self._heard.wait_for(look, _SECONDS)
            assert found is not None, f"no {pattern!r} in the log:\n{''.join(self._lines)}"
            return found

    def journal(self) -> list[dict[str, Any]]:
        """Return the records of the journal."""
        return [json.loads(line) for line in self.journal_path.read_text(encoding="utf-8").splitlines()]

    # Where it is.

    def address(self, direction: str, *, tls: bool = False) -> tuple[str, int]:
        """Return where a proxy listens, in clear or with TLS from the first octet: the newest of such addresses."""
        found = [
            match for match in _LISTENING.finditer(self.log) if match[1] == direction and bool(match["tls"]) is tls
        ]
        return found[-1][2], int(found[-1][3])

    @property
    def outbound(self) -> tuple[str, int]:
        """Where the outbound proxy listens."""
        return self.address("outbound")

    @property
    def inbound(self) -> tuple[str, int]:
        """Where the inbound proxy listens."""
        return self.address("inbound")

    # The process.

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def memory(self) -> int:
        """Return the resident octets of all of its processes (VmRSS)."""
        process = psutil.Process(self.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def reload(self) -> None:
        """Ask it to read settings and keys anew."""
        os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> None:
        """Ask it to drain."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(_SECONDS)
        self._reader.join()
        return status

    def tagged(self, address: bytes) -> bytes:
        """Return the signed address."""
        signed = sign(Mailbox.parse(address), self.ring, today())
        assert isinstance(signed, Mailbox)
        return signed.octets

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                with self._heard:
                    self._lines.append(line)
                    self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()
