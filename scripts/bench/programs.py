"""Programs that are measured or that measure: where they are, and one running as long as a context lasts."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.mta import free_ports, greeted
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CHECKOUT", "CONNECTIONS", "HOST", "MissingToolError", "Sink", "exim", "running", "sink", "tool"]

CHECKOUT: Final = Path(__file__).parents[2]
"""The folder in which Python finds `batv`, `scripts` and `tests`."""

CONNECTIONS: Final = 2000
"""How many connections everything takes at once where it has to be told."""

HOST: Final = "127.0.0.1"
"""Where everything listens."""

_PLACES: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_STOP_SECONDS: Final = 30


class MissingToolError(Exception):
    """A program or right that a hop needs is not here."""


def tool(name: str, package: str) -> Path:
    """Return where a program is.

    Args:
        name: the program.
        package: the Debian package that holds it.

    Raises:
        MissingToolError: it is not here.
    """
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise MissingToolError(f"there is no {name}: install Debian's {package}")
    return Path(found)


def exim() -> Path:
    """Return a command that runs Exim, which is unpacked beside the system if it is not there yet.

    Raises:
        MissingToolError: it cannot be had.
    """
    fetched = subprocess.run([CHECKOUT / "scripts/mta/fetch-exim"], capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        raise MissingToolError(f"{fetched.stderr.strip()}: leave exim out with --hops")
    return Path(fetched.stdout.strip())


@contextmanager
def running(command: Iterable[str | Path], folder: Path, port: int) -> Iterator[int]:
    """Run a program that serves a port, and give its process id once it does.

    Args:
        command: the program and its arguments.
        folder: the program's current folder, where its log goes too; made if it is not there.
        port: the port on which it must answer.

    Raises:
        MissingToolError: it ended at once.
    """
    program, *arguments = command
    folder.mkdir(exist_ok=True)
    log = folder / f"{Path(program).name}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            until(lambda: process.poll() is not None or greeted(HOST, port), f"answer of {program}")
            if process.poll() is not None:
                raise MissingToolError(f"{program} does not start: {log.read_text(errors='replace').strip()}")
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            finally:
                process.kill()


class Sink(NamedTuple):
    """An smtp-sink that runs.

    Attributes:
        port: where it listens.
        pid: its process.
    """

    port: int
    pid: int


@contextmanager
def sink(folder: Path) -> Iterator[Sink]:
    """Run smtp-sink, with what servers offer to anybody.

    By itself it offers XCLIENT and XFORWARD to everybody, which servers do to listed peers alone; our proxies would say
    a command more for each message, and the others would not.
    """
    port = free_ports(1)[0]
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # as root it must be told
    limits = ["-C", "-F", "-m", str(CONNECTIONS), f"{HOST}:{port}", str(CONNECTIONS)]
    with running([tool("smtp-sink", "postfix"), *user, *limits], folder, port) as pid:
        yield Sink(port, pid)
