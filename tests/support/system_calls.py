"""Commands of `batv` whose system calls are seen one by one, and of which one can be made to fail or to kill.

Each command runs in a process of its own, forked from one that has run such a command before: so the calls are those
of the command, none of Python's start, and the same ones each time. strace(1) watches it from before its first call.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.command import child_environment

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["Call", "Traced", "TracedCommands"]

_SERVER: Final = """
import ctypes, json, os, signal, sys
from batv.cli import main, run
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for arguments in json.loads(sys.argv[1]):
    assert run(arguments) == 0
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        told = os.dup(2)
        for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        # Where processes may trace only what they have started: anybody of the same user may trace this one.
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
        sys.argv[1:] = request["arguments"]
        os.write(told, b"%d\\n" % os.getpid())
        signal.sigwait({signal.SIGUSR1})
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""

_CALL: Final = re.compile(r"(?P<name>\w+)\((?P<rest>.*)")
_WAITS: Final = frozenset({"rt_sigtimedwait", "restart_syscall"})


@dataclass(frozen=True, slots=True)
class Call:
    """A system call of a command.

    Attributes:
        name: its name.
        count: which one of that name it is, from 1 on.
        text: what strace shows of it.
    """

    name: str
    count: int
    text: str

    def __str__(self) -> str:
        """Return name and count, and the name of the file where it has one."""
        file = re.search(r'"([^"]*)"', self.text)
        return f"{self.name} {self.count}" + (f" ({file[1].rpartition('/')[2]})" if file else "")


@dataclass(frozen=True, slots=True)
class Traced:
    """What became of a command.

    Attributes:
        status: exit status; below zero the signal that has killed it.
        out: its standard output.
        err: its standard error.
        calls: its system calls, in their order.
        injected: whether the fault came to pass.
    """

    status: int
    out: str
    err: str
    calls: tuple[Call, ...]
    injected: bool


class TracedCommands:
    """Runs commands on a site, for as long as the context lasts.

    Args:
        config: the site's configuration file.
        folder: for the files that strace writes.
        warm_up: commands that are run first, so that all their modules are loaded; they must end well.
    """

    def __init__(self, config: Path, folder: Path, *warm_up: tuple[str, ...]) -> None:
        strace = shutil.which("strace")
        assert strace is not None, "there is no strace"
        self._strace: Final = strace
        self._config: Final = config
        self._folder: Final = folder
        self._warm_up: Final = [["--config", str(config), *arguments] for arguments in warm_up]
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the process from which the commands are forked."""
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, json.dumps(self._warm_up)],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End that process."""
        assert self._server is not None
        self._server.communicate(timeout=60)

    def __call__(self, *arguments: str, inject: str = "") -> Traced:
        """Run a command, and return what became of it.

        Args:
            arguments: the words after `batv`.
            inject: a fault as strace's option `inject` has it, such as `fsync:error=EIO:when=1`; empty for none.
        """
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stderr is not None
        out, err, log = (self._folder / name for name in ("out", "err", "calls"))
        request = {"arguments": ["--config", str(self._config), *arguments], "out": str(out), "err": str(err)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        while not (line := self._server.stderr.readline().strip()).isdigit():
            assert line, "the process from which commands are forked has ended"
        child = int(line)
        options = ["-e", f"inject={inject}"] if inject else []
        with subprocess.Popen(
            [self._strace, "-o", log, "-p", str(child), *options], stderr=subprocess.PIPE, text=True
        ) as strace:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            if "attached" not in said:
                os.kill(child, signal.SIGKILL)
            assert "attached" in said, said
            os.kill(child, signal.SIGUSR1)
            status = int(self._server.stderr.readline())
        trace = log.read_text(encoding="utf-8", errors="replace")
        return Traced(
            status,
            out.read_text(encoding="utf-8"),
            err.read_text(encoding="utf-8"),
            _calls(trace),
            "(INJECTED)" in trace or "killed by SIGKILL" in trace,
        )


def _calls(trace: str) -> tuple[Call, ...]:
    calls: list[Call] = []
    counts: dict[str, int] = {}
    for match in _CALL.finditer(trace):
        name = match["name"]
        if name not in _WAITS:
            counts[name] = counts.get(name, 0) + 1
            calls.append(Call(name, counts[name], match["rest"]))
    return tuple(calls)
