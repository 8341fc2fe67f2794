"""Debian's HAProxy for tests: a process of its own, in front of a server of the test.

The system's own is neither read nor touched.
"""

from __future__ import annotations

import csv
import socket
import subprocess
from typing import TYPE_CHECKING, Final, Self

from tests.support.port import free_port
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["HAProxy"]

_PROGRAM: Final = "/usr/sbin/haproxy"
_SECONDS: Final = 30


class HAProxy:
    """A load balancer in front of one server, for as long as the context lasts.

    Args:
        folder: where its files go.
        server: address of the server.
        options: what the line of the server has beside its address, such as `send-proxy`.
        lines: further lines about servers, such as another one.

    Attributes:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, folder: Path, server: tuple[str, int], options: str, lines: Sequence[str] = ()) -> None:
        self.port: Final = free_port()
        self._control: Final = folder / "control"
        self._log: Final = folder / "haproxy.log"
        self._settings: Final = folder / "haproxy.cfg"
        self._settings.write_text(
            "\n".join(
                [
                    "global",
                    f"    stats socket {self._control}",
                    "defaults",
                    "    mode tcp",
                    "    timeout connect 10s",
                    "    timeout client 60s",
                    "    timeout server 60s",
                    "frontend smtp",
                    f"    bind 127.0.0.1:{self.port}",
                    "    default_backend batv",
                    "backend batv",
                    f"    server tested {server[0]}:{server[1]} {options}",
                    *(f"    {line}" for line in lines),
                    "",
                ]
            )
        )

    def __enter__(self) -> Self:
        """Start; it takes connections when this returns."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([_PROGRAM, "-db", "-f", self._settings], stdout=log, stderr=log)
        until(self._answers, "answer of HAProxy")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for the end."""
        self._process.terminate()
        self._process.wait(_SECONDS)

    @property
    def status(self) -> str:
        """What it thinks of the server, such as `UP` or `DOWN`, and of its last check, such as `L7OK`."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(b"show stat\n")
            text = b"".join(iter(lambda: control.recv(65_536), b"")).decode()
        (row,) = (row for row in csv.DictReader(text.removeprefix("# ").splitlines()) if row["svname"] == "tested")
        return f"{row['status']} {row['check_status']}".strip()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS).close()
        except OSError:
            return False
        return True
