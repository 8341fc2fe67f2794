"""The service, or one of its workers, is told to end or to reload, or is killed: what was accepted is delivered.

A client that got no answer tries again, as every MTA does. Who is told to end lets transactions come to their end.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Final, Self

import psutil
import pytest

from tests.faults.table import Flow
from tests.support.faulty_hop import FaultyHop, Stage
from tests.support.keeping_client import Attempt, Letter, attempt
from tests.support.port import free_port
from tests.support.service import SERVE, ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

_SECONDS: Final = 30.0
_BETWEEN_TRIES_SECONDS: Final = 0.02

_STAGES: Final = (
    Stage.BANNER,
    Stage.EHLO,
    Stage.MAIL,
    Stage.FIRST_RCPT,
    Stage.DATA,
    Stage.BODY,
    Stage.DOT,
    Stage.RSET,
)
"""Those at which a transaction is open, so that it can come to its end."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to the service.

    Attributes:
        number: the signal.
        workers: how many there are.
        one: whether one worker gets it, the one that serves the client; else the service.
    """

    number: signal.Signals
    workers: int = 1
    one: bool = False

    def __str__(self) -> str:
        """Return the words for it."""
        whom = "worker" if self.one else "service"
        return f"{self.number.name} to the {whom}" + (f" of {self.workers}" if self.workers > 1 else "")

    @property
    def ends(self) -> bool:
        """Whether the service ends by it."""
        return not self.one and self.number is not signal.SIGHUP

    @property
    def loses_answers(self) -> bool:
        """Whether a client under way may be left without an answer: workers whose supervisor is killed are told."""
        return self.number is signal.SIGKILL and (self.one or self.workers == 1)


_BLOWS: Final = (
    *(Blow(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)),
    *(Blow(number, 2, one) for one in (False, True) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)),
)


class Site:
    """A service that is started again wherever it has ended, on the same ports and with the same files.

    Args:
        folder: for all of it.
        workers: how many.
        seconds: how long its next hop thinks before each reply.
        before: what the service runs first.
    """

    def __init__(self, folder: Path, workers: int, seconds: float = 0, before: str = "") -> None:
        self.hop: Final = FaultyHop(folder / "record", seconds=seconds)
        self._folder: Final = folder
        self._workers: Final = workers
        self._code: Final = before + SERVE
        self._ports: Final = {"outbound": free_port(), "inbound": free_port()}
        self._services: Final[list[ServiceProcess]] = []

    def __enter__(self) -> Self:
        """Start."""
        self.hop.__enter__()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        for service in self._services:
            service.__exit__()
        self.hop.__exit__()

    @property
    def service(self) -> ServiceProcess:
        """The service as it was last started."""
        return self._services[-1]

    def start(self) -> None:
        """Start the service."""
        settings = f"[smtp]\nworkers = {self._workers}\ndrain_seconds = 20\n"
        service = ServiceProcess(self._folder, self.hop.address, settings, code=self._code)
        config = service.config.read_text(encoding="utf-8")
        for direction, port in self._ports.items():
            old = f'[{direction}]\nlisten = ["127.0.0.1:0"]'
            assert old in config
            config = config.replace(old, old.replace(":0", f":{port}"))
        service.config.write_text(config, encoding="utf-8")
        self._services.append(service)
        service.__enter__()

    def address(self, flow: Flow) -> tuple[str, int]:
        """Return where the proxy listens, whether it runs or not."""
        return "127.0.0.1", self._ports[flow.proxy]

    def processes(self) -> list[psutil.Process]:
        """Return the service's process, and its workers."""
        parent = psutil.Process(self.service.pid)
        return [parent, *parent.children()]

    def envelope(self, flow: Flow) -> tuple[bytes, dict[bytes, bytes]]:
        """Return a sender and two recipients with their paths, as mail of that kind has them."""
        names = [b"ann@example.com", b"eve@example.com"]
        if flow is Flow.OUTBOUND:
            return b"joe@example.com", dict(zip(names, names, strict=True))
        forged = names[1] if flow is Flow.MIXED else self.service.tagged(names[1])
        return b"", {names[0]: self.service.tagged(names[0]), names[1]: forged}

    def delivered(self) -> Counter[tuple[str, bytes]]:
        """Return how often each message reached each recipient; a forged bounce, how often the journal has it."""
        found = Counter((taken.identity, recipient) for taken in self.hop.taken for recipient in taken.recipients)
        for record in self.service.journal():
            if record["disposition"] == "discard" and record["reply"].startswith("250"):
                identity = record["message_id"].strip("<>").partition("@")[0]
                found[identity, record["forward_path"].strip("<>").encode()] += 1
        return found


# At each stage.


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Site]]:
    """A site for each number of workers."""
    with (
        Site(tmp_path_factory.mktemp("alone"), 1) as alone,
        Site(tmp_path_factory.mktemp("workers"), 2) as workers,
    ):
        yield {1: alone, 2: workers}


def server_of(client: SmtpClient, among: list[psutil.Process]) -> psutil.Process:
    """Return the process that serves a client."""
    name = client.socket.getsockname()
    return next(each for each in among for connection in each.net_connections("tcp") if connection.raddr == name)


def strike(site: Site, blow: Blow, client: SmtpClient) -> None:
    """Let it happen, and wait until it has."""
    at = len(site.service.log)
    processes = site.processes()
    struck = server_of(client, processes) if blow.one else processes[0]
    os.kill(struck.pid, blow.number)
    if blow.loses_answers and not blow.one:
        site.service.wait()
    else:
        said = {signal.SIGHUP: r"\breloaded\b", signal.SIGTERM: "stopping", signal.SIGKILL: "worker died|stopping"}
        site.service.wait_for_log(said[blow.number], after=at)


def recover(site: Site, blow: Blow, processes: list[psutil.Process], at: int) -> None:
    """See to it that there is a whole service again."""
    if blow.ends:
        assert site.service.wait() == (-9 if blow.number is signal.SIGKILL else 0)
        _, left = psutil.wait_procs(processes, _SECONDS)
        assert not left, "no worker is left behind"
        site.start()
    elif blow.one and blow.number is not signal.SIGHUP:
        site.service.wait_for_log("worker listens again", after=at)


def check_signal(site: Site, stage: Stage, blow: Blow) -> None:
    """Send a message, let the next hop hold it at that stage, strike, and hold what became of it against the laws."""
    site.hop.forget()
    # RSET is said where a forged recipient was asked about.
    flow = Flow.MIXED if stage is Stage.RSET else list(Flow)[_STAGES.index(stage) % len(Flow)]
    letter = Letter(f"{stage}-{blow}".replace(" ", "_"))
    sender, paths = site.envelope(flow)
    at, processes = len(site.service.log), site.processes()
    struck = Event()

    def halfway() -> None:
        # The next hop must not have the dot already.
        if stage is Stage.BODY:
            struck.wait(_SECONDS)

    with ThreadPoolExecutor(1) as thread:
        try:
            with SmtpClient(site.address(flow)) as client:
                site.hop.cut()  # so that a connection is made, greeting and all
                site.hop.hold(stage)
                sending = thread.submit(attempt, client, letter, sender, paths, halfway=halfway)
                assert site.hop.held.wait(_SECONDS)
                strike(site, blow, client)
                site.hop.release()
                struck.set()
                made = sending.result(_SECONDS)
        finally:
            site.hop.release()
            struck.set()
    early = site.delivered()
    assert {(letter.identity, recipient) for recipient in made.accepted} <= set(early), made.heard
    assert not made.refused, made.heard
    if blow.loses_answers:
        assert not made.accepted
        assert made.codes[-1] == 0, "no answer is better than a wrong one"
    else:
        assert made.accepted == set(paths), made.heard
    recover(site, blow, processes, at)
    left = {recipient: path for recipient, path in paths.items() if recipient not in made.accepted}
    if left:
        with SmtpClient(site.address(flow)) as client:
            assert attempt(client, letter, sender, left).accepted == set(left)
    late = site.delivered()
    assert {recipient for identity, recipient in late if identity == letter.identity} == set(paths)
    twice = {key for key, count in late.items() if count > 1 and key[0] == letter.identity}
    assert not twice or (stage is Stage.DOT and blow.loses_answers), "twice only where nobody can know"
    assert {taken.digest for taken in site.hop.taken} == {letter.digest}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take each signal at each stage; without `--long` a third of that, each signal at a stage or two."""
    if "stage" in metafunc.fixturenames:
        cells = [
            pytest.param(stage, blow, id=f"{stage}-{blow}")
            for row, stage in enumerate(_STAGES)
            for column, blow in enumerate(_BLOWS)
            if metafunc.config.getoption("--long") or (row + column) % 3 == 0
        ]
        metafunc.parametrize(("stage", "blow"), cells)


def test_a_signal_at_any_stage_costs_no_mail(sites: dict[int, Site], stage: Stage, blow: Blow) -> None:
    """What can come to its end does; what is cut off stays with its client, which gets rid of it at the next one."""
    check_signal(sites[blow.workers], stage, blow)


_NO_DRAIN: Final = """
from batv.net.door import Door
async def at_once(self):
    pass
Door.emptied = at_once
"""


def test_a_service_that_ends_at_once_does_not_pass(tmp_path: Path) -> None:
    """The check above must see a transaction that is cut off."""
    with Site(tmp_path, 1, before=_NO_DRAIN) as site, pytest.raises(AssertionError, match="DATA"):
        check_signal(site, Stage.DATA, Blow(signal.SIGTERM))


# Under load.


@dataclass(slots=True)
class Load:
    """Clients that send at once, each until all of its messages are accepted.

    Attributes:
        site: where they send to.
        clients: how many.
        messages: of each client.
        attempts: how often each message was tried.
        accepted: the messages whose recipients were accepted, with these.
        cut_off: attempts that had heard 250 to MAIL and got no answer in the end, or a bad one.
        refused: attempts that heard 5yz.
    """

    site: Site
    clients: int
    messages: int
    attempts: Counter[str] = field(default_factory=Counter)
    accepted: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    cut_off: list[Attempt] = field(default_factory=list)
    refused: list[Attempt] = field(default_factory=list)
    _done: int = 0
    _lock: Lock = field(default_factory=Lock)
    _wait: Event = field(default_factory=Event)

    def run(self, client: int) -> None:
        """Be one of the clients."""
        flow = list(Flow)[client % len(Flow)]
        sender, paths = self.site.envelope(flow)
        letters = [Letter(f"{client}-{number}", 200) for number in range(self.messages)]
        pipelined = client % 2 == 0
        while letters:
            # A connection that is refused, or ends, is one to try again.
            with suppress(ConnectionError, TimeoutError), SmtpClient(self.site.address(flow), greet=False) as session:
                if session.reply().code != 220 or session.say(b"EHLO client.example").code != 250:
                    continue
                while letters:
                    letter = letters[-1]
                    left = {
                        recipient: path
                        for recipient, path in paths.items()
                        if (letter.identity, recipient) not in self.accepted
                    }
                    made = attempt(session, letter, sender, left, pipelined=pipelined)
                    self._note(letter, made)
                    if made.accepted == set(left):
                        letters.pop()
                    elif 0 in made.codes or 421 in made.codes:
                        break
            self._wait.wait(_BETWEEN_TRIES_SECONDS)

    def has_come_to(self, share: float, sending: Sequence[Future[None]]) -> bool:
        """Whether so much of it is done, or nobody sends any more."""
        return self._done >= share * self.clients * self.messages or all(each.done() for each in sending)

    def _note(self, letter: Letter, made: Attempt) -> None:
        with self._lock:
            self.attempts[letter.identity] += 1
            for recipient in made.accepted:
                self.accepted[letter.identity, recipient] += 1
            self._done += bool(made.accepted)
            if made.refused:
                self.refused.append(made)
            if made.heard[0] == ("MAIL", 250) and not made.accepted:
                self.cut_off.append(made)


def strike_under_load(load: Load, blow: Blow, chance: random.Random) -> None:
    """Let it happen to the service, or to any worker, and see to it that there is a whole service again."""
    site = load.site
    at, processes = len(site.service.log), site.processes()
    struck = chance.choice(processes[1:]) if blow.one else processes[0]
    os.kill(struck.pid, blow.number)
    if blow.number is signal.SIGHUP:
        site.service.wait_for_log(r"\breloaded\b", after=at)
    recover(site, blow, processes, at)


def check_load(load: Load, blows: list[Blow]) -> None:
    """Strike while clients send, and hold what they were told against what the next hop has."""
    site, chance = load.site, random.Random(1)
    with ThreadPoolExecutor(load.clients) as threads:
        sending = [threads.submit(load.run, client) for client in range(load.clients)]
        for number, blow in enumerate(blows, 1):
            share = number / (len(blows) + 1)
            until(partial(load.has_come_to, share, sending), "load", 300)
            strike_under_load(load, blow, chance)
        for each in sending:
            each.result(300)
    delivered = site.delivered()
    recipients = {b"ann@example.com", b"eve@example.com"}
    wanted = {
        (f"{client}-{number}", recipient)
        for client in range(load.clients)
        for number in range(load.messages)
        for recipient in recipients
    }
    assert set(load.accepted) == wanted, "everything is accepted in the end"
    assert set(delivered) == wanted, "and delivered"
    assert set(load.accepted.values()) == {1}
    assert all(count <= load.attempts[identity] for (identity, _), count in delivered.items()), "once an attempt"
    for taken in site.hop.taken:
        assert taken.digest == Letter(taken.identity, 200).digest, "octet for octet"
    assert not load.refused, "no 5yz"


def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Return how many clients there are, and how many messages each of them has."""
    return (200, 100) if request.config.getoption("--long") else (24, 20)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_signals_under_load_cost_no_mail(tmp_path: Path, workers: int, request: pytest.FixtureRequest) -> None:
    """Killed, ended and reloaded in the midst of it, whole or one worker: zero lost."""
    with Site(tmp_path, workers, seconds=0.002) as site:
        check_load(Load(site, *size(request)), [blow for blow in _BLOWS if blow.workers == workers])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_under_load_cuts_no_transaction_off(
    tmp_path: Path, workers: int, request: pytest.FixtureRequest
) -> None:
    """Whoever has heard 250 to MAIL has the time to come to the end, and hears 250."""
    ends = [Blow(signal.SIGTERM, workers), Blow(signal.SIGHUP, workers)]
    ends += [Blow(signal.SIGTERM, workers, one=True)] if workers > 1 else []
    with Site(tmp_path, workers, seconds=0.002) as site:
        load = Load(site, *size(request))
        check_load(load, 2 * ends)
    assert not load.cut_off
