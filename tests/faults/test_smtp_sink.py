"""Postfix's own test server, smtp-sink, is the next hop and fails: what was accepted is in its files all the same."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.faults.table import Flow, Outcome
from tests.support.keeping_client import Attempt, Letter, attempt
from tests.support.mta import mta_folder
from tests.support.port import free_port
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.mta("smtp-sink")

_PROGRAM: Final = "/usr/sbin/smtp-sink"
_LIMITS: Final = """\
[next_hop]
connect_seconds = 0.4
command_seconds = 0.4
data_seconds = 0.4
message_seconds = 0.4
"""
_TRIES: Final = 5

_REFUSES: Final = "-f"
_DEFERS: Final = "-r"
_FAULTS: Final = {"-f": "5yz", "-r": "4yz", "-q": "closes", "-Q": "421 and closes", "-W": "is slow"}
_COMMANDS: Final = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".", "RSET", "QUIT")


class Sinks:
    """Runs smtp-sink on one port, with other faults each time.

    Args:
        folder: for the files of the messages; everybody may write there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.port: Final = free_port()

    @contextmanager
    def __call__(self, *options: str) -> Iterator[None]:
        """Run it for as long as the context lasts."""
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        place = [f"127.0.0.1:{self.port}", "100"]
        with subprocess.Popen([_PROGRAM, *user, *options, "-d", f"{self.folder}/m.", *place]) as sink:
            try:
                until(self._listens, "smtp-sink that listens")
                yield
            finally:
                sink.kill()

    def recipients(self, letter: Letter) -> set[bytes]:
        """Return who has the message, whole and as it was sent."""
        found: set[bytes] = set()
        for path in self.folder.iterdir():
            head, _, content = path.read_bytes().partition(b"(UTC)\n")
            if b"Message-ID: <%b@" % letter.identity.encode() not in content:
                continue
            sent = re.sub(rb"^\.", b"", letter.content, flags=re.MULTILINE).replace(b"\r\n", b"\n")
            if content == sent + b"\n":  # smtp-sink ends each file with an empty line
                found.update(re.findall(rb"^X-Rcpt-Args: <(.*)>$", head, re.MULTILINE))
        return found

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return True


@pytest.fixture(scope="module")
def sinks() -> Iterator[Sinks]:
    """The place of smtp-sink, for all tests."""
    with mta_folder() as folder:
        folder.chmod(0o777)
        yield Sinks(folder)


@pytest.fixture(scope="module")
def service(sinks: Sinks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service for all tests."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), f"127.0.0.1:{sinks.port}", _LIMITS) as running:
        yield running


def expected(option: str, command: str) -> Outcome:
    """Return what is to become of the message at the first attempt."""
    if command in {"RSET", "QUIT"} or (option, command) == (_REFUSES, "EHLO"):
        return Outcome.UNHARMED  # who refuses EHLO hears HELO
    if command in {"MAIL", "RCPT", "DATA", "."} and option in {_REFUSES, _DEFERS}:
        return Outcome.REFUSED if option == _REFUSES else Outcome.PASSED_ON
    return Outcome.DEFERRED


def send(service: ServiceProcess, flow: Flow, letter: Letter) -> tuple[Attempt, set[bytes]]:
    """Send the message in a session of its own; return what became of it, and the recipients at the next hop."""
    genuine = b"ann@example.com"
    paths = {genuine: genuine if flow is Flow.OUTBOUND else service.tagged(genuine)}
    if flow is Flow.MIXED:
        paths[b"eve@example.com"] = b"eve@example.com"
    with SmtpClient(service.address(flow.proxy)) as client:
        return attempt(client, letter, b"joe@example.com" if flow is Flow.OUTBOUND else b"", paths), {genuine}


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("option", _FAULTS, ids=_FAULTS.get)
@pytest.mark.parametrize("flow", [Flow.OUTBOUND, Flow.MIXED], ids=str)
def test_smtp_sink_that_fails_costs_no_mail(
    sinks: Sinks, service: ServiceProcess, flow: Flow, option: str, command: str
) -> None:
    """A server that is nobody's invention fails as its manual says, and every law holds."""
    letter = Letter(f"{flow.proxy}{option}{command}".replace(".", "dot"))
    with sinks(option, f"{command}:2" if option == "-W" else command):
        made, at_next_hop = send(service, flow, letter)
    match expected(option, command):
        case Outcome.UNHARMED:
            assert made.accepted >= at_next_hop, made.heard
        case Outcome.REFUSED:
            assert 500 in made.codes, made.heard
            assert not made.accepted
        case Outcome.PASSED_ON:
            assert 450 in made.codes, made.heard
            assert not made.accepted
            assert not made.refused
        case _:
            assert 451 in made.codes, made.heard
            assert set(made.codes) <= {250, 354, 451, 503}
            assert not made.accepted
    if made.accepted:
        assert at_next_hop <= sinks.recipients(letter), "what was accepted is delivered"
    if not made.refused and not made.accepted:
        with sinks():
            tries = 0
            while not made.accepted and tries < _TRIES:
                made, tries = send(service, flow, letter)[0], tries + 1
        assert made.accepted, made.heard
        assert at_next_hop <= sinks.recipients(letter), "and in the end"


@pytest.mark.parametrize("options", [("-A", "0"), ("-H", "2", "-T", "2000")], ids=["aborts", "does-not-read"])
def test_smtp_sink_that_fails_in_the_message_costs_no_mail(
    sinks: Sinks, service: ServiceProcess, options: tuple[str, ...]
) -> None:
    """It says 550 in the midst of it, or reads nothing: nobody may take that for 250."""
    letter = Letter(f"body{options[0]}", 600_000)
    with sinks(*options):
        made, _ = send(service, Flow.OUTBOUND, letter)
    assert not made.accepted, made.heard
    assert made.codes[-1] in {451, 550}, "the 550 of the next hop, where it is read after the dot"
    with sinks():
        made, at_next_hop = send(service, Flow.OUTBOUND, letter)
    assert made.accepted == at_next_hop <= sinks.recipients(letter)
