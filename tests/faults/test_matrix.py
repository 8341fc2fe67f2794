"""The next hop breaks in each way at each stage of a session, and every law of the mail holds all the same."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.faults.table import CELLS, README, SAMPLE, Cell, Flow, Outcome, page
from tests.support.certificates import Authority, serving
from tests.support.faulty_hop import OFFERS, Fault, FaultyHop, Plan, Stage
from tests.support.keeping_client import Attempt, Letter, attempt
from tests.support.service import LOOPS, SERVE, ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENT_SECONDS: Final = 30.0
_IMPATIENT_SECONDS: Final = 0.3
_SOON_SECONDS: Final = 5.0
_TRIES: Final = 3
_LONG: Final = 600_000
"""Octets of a message that does not fit into what the system keeps for a peer that reads nothing."""

_numbers: Final = itertools.count(1)


class Bench:
    """A service and its next hop, for the cells that want the same of them.

    Args:
        folder: for the service and the record.
        authority: issues the next hop's certificate.
        tls: `next_hop_tls`; empty where the next hop has none.
        seconds: how long the next hop may take.
        code: what the service runs.
    """

    def __init__(self, folder: Path, authority: Authority, *, tls: str, seconds: float, code: str = SERVE) -> None:
        self.hop: Final = FaultyHop(folder / "record", tls=serving(authority) if tls else None)
        self._stack: Final = ExitStack()
        self._stack.enter_context(self.hop)
        options = f'next_hop_tls = "{tls}"\n' if tls else ""
        options += f'next_hop_tls_ca = "{authority.ca}"\n' if tls == "required" else ""
        # In clear it is tried once more, for which there has to be time.
        settings = limits(_PATIENT_SECONDS, seconds) if tls == "opportunistic" else limits(seconds)
        self.service: Final = ServiceProcess(folder, self.hop.address, settings, code=code)
        place = f'next_hop = "{self.hop.address}"\n'
        config = self.service.config
        config.write_text(config.read_text(encoding="utf-8").replace(place, place + options), encoding="utf-8")
        self._stack.enter_context(self.service)
        self._process: Final = psutil.Process(self.service.pid)
        # The first message opens what stays open.
        for flow in Flow:
            with SmtpClient(self.service.address(flow.proxy)) as client:
                envelope = Envelope(flow, self.service, several=False)
                attempt(client, Letter("first", 10), envelope.sender, envelope.paths)
        self.hop.forget()
        self._open_files: Final = until(self._quiet, "service at rest")

    def close(self) -> None:
        """End both."""
        self._stack.close()

    def open_files(self) -> int:
        """Return how many files and connections the service has open."""
        return self._process.num_fds()

    def at_rest(self) -> bool:
        """Whether nothing is open that was not at the beginning."""
        return self.open_files() <= self._open_files

    def _quiet(self) -> int:
        connections = self._process.net_connections("tcp")
        return 0 if any(each.status == psutil.CONN_ESTABLISHED for each in connections) else self.open_files()


class Envelope:
    """Sender and recipients of a kind of mail.

    Args:
        flow: the kind.
        service: signs the recipients of bounces.
        several: whether there are several of them.
    """

    def __init__(self, flow: Flow, service: ServiceProcess, *, several: bool) -> None:
        genuine = [b"ann@example.com", b"bob@example.com"][: 2 if several else 1]
        forged = ([b"eve@example.com", b"sue@example.com"] if flow is Flow.MIXED else [])[: 2 if several else 1]
        self.sender: Final = b"joe@example.com" if flow is Flow.OUTBOUND else b""
        tagged = flow is not Flow.OUTBOUND
        self.paths: Final = {
            **{recipient: service.tagged(recipient) if tagged else recipient for recipient in genuine},
            **{recipient: recipient for recipient in forged},
        }
        self.forwarded: Final = len(genuine)


def limits(seconds: float, connect_seconds: float | None = None) -> str:
    """Return the settings by which the next hop may take so long for each thing, and so long until EHLO."""
    limited = dict.fromkeys(("connect", "command", "data", "message"), seconds)
    limited["connect"] = connect_seconds or seconds
    return "[next_hop]\n" + "".join(f"{name}_seconds = {value}\n" for name, value in limited.items())


# One cell.


def check(bench: Bench, cell: Cell) -> None:
    """Let the next hop break, try again once it is whole, and hold what everybody saw against the laws."""
    hop, service = bench.hop, bench.service
    hop.forget()
    hop.offers = (*OFFERS, b"PIPELINING") if cell.pipelined else OFFERS
    envelope = Envelope(cell.flow, service, several=cell.several)
    letter = Letter(str(next(_numbers)), _LONG if cell.fault is Fault.STOPS_READING else 2000)
    records = len(service.journal())
    address = service.address(cell.flow.proxy)
    plan = Plan(cell.stage, cell.fault, envelope.forwarded, cell.stores)
    made = Attempt()
    for _ in range(_TRIES):  # a slow machine may have the proxy give up before the stage is come to
        with SmtpClient(address) as client:
            hop.fail(plan)
            made = broken(bench, cell, client, letter, envelope)
            with SmtpClient(address, greet=False) as other:
                assert other.reply().code == 220, "another client is greeted meanwhile"
            assert client.say(b"NOOP").code == 250, "the session goes on"
        if hop.struck.wait(1 if made.accepted else 0):
            break
        hop.forget()
        hop.heal()
    early = delivered(bench, letter, records)
    check_laws(bench, cell, letter, made, early)
    assert hop.struck.is_set(), "the next hop breaks at that stage"
    check_outcome(cell, envelope, made)
    if cell.outcome in {Outcome.DEFERRED, Outcome.UNKNOWN} and cell.stage is not Stage.CONNECT:
        assert hop.ended.wait(_SOON_SECONDS), "a connection that broke is given up"
    hop.heal()
    refused = made.refused
    left = set(envelope.paths) - made.accepted - refused
    began = time.monotonic()
    for _ in range(_TRIES):
        if left:
            with SmtpClient(address) as client:
                paths = {recipient: path for recipient, path in envelope.paths.items() if recipient in left}
                again = attempt(client, letter, envelope.sender, paths, pipelined=cell.pipelined)
            assert not again.refused, f"5yz after a fault: {again.heard}"
            left -= again.accepted
    assert not left, "what is tried again is taken"
    assert time.monotonic() - began < _SOON_SECONDS, "and at once"
    late = delivered(bench, letter, records)
    assert set(late) == set(envelope.paths) - refused, "and delivered"
    unknown = set(early) - made.accepted
    assert late == Counter(set(late)) + Counter(unknown), "once, but for what nobody can know"
    assert {taken.digest for taken in hop.taken} <= {letter.digest}, "octet for octet"
    hop.cut()
    until(bench.at_rest, "end of all connections")


def broken(bench: Bench, cell: Cell, client: SmtpClient, letter: Letter, envelope: Envelope) -> Attempt:
    """Send the message to a next hop that breaks meanwhile."""
    hop = bench.hop

    def halfway() -> None:
        if cell.stage is Stage.BODY:
            hop.struck.wait(_SOON_SECONDS)
            if not cell.fault.waits:
                hop.ended.wait(_SOON_SECONDS)  # the proxy has seen it

    if cell.stage is Stage.RSET:
        begin(client, envelope)
        assert client.say(b"RSET").code == 250, "RSET is nobody else's concern"
    elif cell.stage is Stage.QUIT:
        with SmtpClient(bench.service.address(cell.flow.proxy)) as leaving:
            begin(leaving, envelope)
        assert hop.struck.wait(_SOON_SECONDS), "QUIT to the next hop where a client leaves"
    return attempt(client, letter, envelope.sender, envelope.paths, pipelined=cell.pipelined, halfway=halfway)


def begin(client: SmtpClient, envelope: Envelope) -> None:
    """Say MAIL and RCPT."""
    assert client.say(b"MAIL FROM:<%b>" % envelope.sender).code == 250
    for path in envelope.paths.values():
        assert client.say(b"RCPT TO:<%b>" % path).code == 250


def delivered(bench: Bench, letter: Letter, records: int) -> Counter[bytes]:
    """Return how often each recipient has the message: from the next hop, or for a forged bounce on the record."""
    found = Counter(
        recipient for taken in bench.hop.taken if taken.identity == letter.identity for recipient in taken.recipients
    )
    for record in bench.service.journal()[records:]:
        ours = record["message_id"] == f"<{letter.identity}@client.example>"
        if ours and record["disposition"] == "discard" and record["reply"].startswith("250"):
            found[record["forward_path"].strip("<>").encode()] += 1
    # The next hop knows senders by their tags, and recipients by their names.
    return found


def check_laws(bench: Bench, cell: Cell, letter: Letter, made: Attempt, early: Counter[bytes]) -> None:
    """Hold the attempt against what has to be so whatever happens."""
    assert 0 not in made.codes, f"never silence: {made.heard}"
    assert made.accepted <= set(early), f"250 only for what is delivered or on record: {made.heard}"
    answered = {
        recipient
        for taken in bench.hop.taken
        if taken.identity == letter.identity and taken.answered
        for recipient in taken.recipients
    }
    on_record = set(early) - {recipient for taken in bench.hop.taken for recipient in taken.recipients}
    assert made.accepted <= answered | on_record, "250 only where the next hop says 250 to the dot"
    if cell.fault is not Fault.NEVER or cell.outcome is Outcome.DEFERRED:
        assert not made.refused, f"never 5yz for a fault: {made.heard}"
    if cell.outcome is not Outcome.UNKNOWN:
        assert set(early) == made.accepted, "delivered without 250 only where nobody can know"
    assert max(early.values(), default=0) <= 1, "at most once an attempt"


def check_outcome(cell: Cell, envelope: Envelope, made: Attempt) -> None:
    """Hold what the client heard against the table."""
    everybody = set(envelope.paths)
    codes = set(made.codes)
    match cell.outcome:
        case Outcome.UNHARMED:
            assert made.accepted == everybody, made.heard
        case Outcome.DEFERRED | Outcome.UNKNOWN:
            assert 451 in codes, f"the client hears of it: {made.heard}"
            assert codes <= {250, 354, 451, 503}, made.heard
            assert not made.accepted, made.heard
        case Outcome.PASSED_ON:
            assert 450 in codes, f"the client hears of it: {made.heard}"
            assert made.accepted == spared(cell, envelope), made.heard
        case Outcome.REFUSED:
            assert 550 in codes, f"the client hears of it: {made.heard}"
            assert made.accepted == spared(cell, envelope), made.heard
            assert made.refused == everybody - made.accepted, made.heard


def spared(cell: Cell, envelope: Envelope) -> set[bytes]:
    """Return the recipients with whom nothing is wrong where the next hop refuses a recipient."""
    if cell.stage not in {Stage.FIRST_RCPT, Stage.LAST_RCPT}:
        return set()
    genuine = list(envelope.paths)[: envelope.forwarded]
    # Each recipient of a forged bounce is asked about in a transaction where it is the first.
    if cell.stage is Stage.FIRST_RCPT:
        return set(genuine[1:])
    return set(envelope.paths) - {genuine[-1]}


# All of them.


class Benches:
    """Benches as cells want them, each started when it is first wanted.

    Args:
        folder: for all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._authority: Final = Authority(folder)
        self._benches: Final[dict[tuple[str, bool, str], Bench]] = {}

    def bench(self, *, tls: str, waits: bool, code: str = SERVE) -> Bench:
        """Return the one with such a next hop, where faults wait for a time limit or do not."""
        wanted = (tls, waits, code)
        if wanted not in self._benches:
            folder = self._folder / str(next(_numbers))
            folder.mkdir()
            seconds = _IMPATIENT_SECONDS if waits else _PATIENT_SECONDS
            self._benches[wanted] = Bench(folder, self._authority, tls=tls, seconds=seconds, code=code)
        return self._benches[wanted]

    def of(self, cell: Cell, before: str = "") -> Bench:
        """Return the one for a cell; what the service runs may have something put before it."""
        loop = LOOPS["asyncio" if cell.asyncio else "as-installed"]
        return self.bench(tls="required" if cell.tls else "", waits=cell.fault.waits, code=before + loop)

    def close(self) -> None:
        """End all of them."""
        for bench in self._benches.values():
            bench.close()


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    """The benches for the whole table."""
    there = Benches(tmp_path_factory.mktemp("benches"))
    try:
        yield there
    finally:
        there.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take a sample of the cells, or all of them."""
    if "cell" in metafunc.fixturenames:
        cells = CELLS if metafunc.config.getoption("--long") else SAMPLE
        metafunc.parametrize("cell", [pytest.param(cell, id=str(cell)) for cell in cells])


def test_a_next_hop_that_breaks_costs_no_mail(benches: Benches, cell: Cell) -> None:
    """Whatever it does, and wherever: what was accepted is delivered, and what was not is delivered in the end."""
    check(benches.of(cell), cell)


@pytest.mark.parametrize("flow", [Flow.OUTBOUND, Flow.MIXED], ids=str)
def test_a_next_hop_whose_name_does_not_resolve_costs_no_mail(tmp_path: Path, flow: Flow) -> None:
    """The name may be there in a minute: the client hears 451, and 250 once there is a next hop."""
    with FaultyHop(tmp_path / "record") as hop:
        service = ServiceProcess(tmp_path, "nowhere.invalid:25", limits(_SOON_SECONDS))
        with service, SmtpClient(service.address(flow.proxy)) as client:
            envelope, letter = Envelope(flow, service, several=True), Letter("name")
            made = attempt(client, letter, envelope.sender, envelope.paths)
            assert made.heard == [("MAIL", 451)]
            settings = service.config.read_text(encoding="utf-8").replace(service.next_hop, hop.address)
            service.config.write_text(settings, encoding="utf-8")
            service.reload()
            service.wait_for_log("reloaded")
            assert attempt(client, letter, envelope.sender, envelope.paths).accepted == set(envelope.paths)
        assert [taken.digest for taken in hop.taken] == [letter.digest]


STARTTLS_FAULTS: Final = list(dict.fromkeys(cell.fault for cell in CELLS if cell.stage is Stage.STARTTLS))


@pytest.mark.parametrize("fault", STARTTLS_FAULTS, ids=str)
def test_a_next_hop_that_breaks_at_starttls_gets_the_mail_in_clear_where_it_may(benches: Benches, fault: Fault) -> None:
    """Encrypted if it can be had: a fault of TLS alone must not keep mail back."""
    bench = benches.bench(tls="opportunistic", waits=fault.waits)
    bench.hop.forget()
    envelope, letter = Envelope(Flow.MIXED, bench.service, several=True), Letter(str(next(_numbers)))
    with SmtpClient(bench.service.inbound) as client:
        bench.hop.fail(Plan(Stage.STARTTLS, fault))
        made = attempt(client, letter, envelope.sender, envelope.paths)
    bench.hop.heal()
    assert bench.hop.struck.is_set()
    assert made.accepted == set(envelope.paths), made.heard
    assert [taken.digest for taken in bench.hop.taken] == [letter.digest]
    bench.hop.cut()
    until(bench.at_rest, "end of all connections")


@pytest.mark.parametrize(
    ("keyword", "parameter"),
    [(b"8BITMIME", b" BODY=8BITMIME"), (b"SMTPUTF8", b" SMTPUTF8"), (b"SIZE", b" SIZE=3000"), (b"DSN", b" RET=HDRS")],
)
@pytest.mark.parametrize("flow", Flow, ids=str)
def test_a_next_hop_that_offers_less_than_before_costs_no_mail(
    benches: Benches, flow: Flow, keyword: bytes, parameter: bytes
) -> None:
    """The client was told otherwise: it hears 451, not 5yz, and nothing is sent as what it is not."""
    bench = benches.bench(tls="", waits=False)
    hop = bench.hop
    hop.forget()
    hop.offers = OFFERS
    envelope, letter = Envelope(flow, bench.service, several=False), Letter(str(next(_numbers)))
    with SmtpClient(bench.service.address(flow.proxy)) as client:
        for offers, accepted in ((OFFERS, True), ([each for each in OFFERS if keyword not in each], False)):
            hop.cut()
            hop.offers = offers
            made = attempt(client, letter, envelope.sender, envelope.paths, parameters=parameter)
            assert bool(made.accepted) is accepted, made.heard
            assert accepted or made.heard == [("MAIL", 451)]
        hop.cut()
        hop.offers = OFFERS
        made = attempt(client, letter, envelope.sender, envelope.paths, parameters=parameter)
        assert made.accepted == set(envelope.paths), made.heard
    assert [taken.digest for taken in hop.taken] == 2 * [letter.digest]


def test_a_next_hop_that_takes_less_than_before_says_so_itself(benches: Benches) -> None:
    """It hears the size that the client gives, and its word goes for the message."""
    bench = benches.bench(tls="", waits=False)
    hop = bench.hop
    hop.forget()
    hop.offers = OFFERS
    with SmtpClient(bench.service.outbound) as client:
        hop.cut()
        hop.offers = (b"SIZE 1000", *OFFERS[1:])
        hop.fail(Plan(Stage.MAIL, Fault.NEVER))
        made = attempt(
            client,
            Letter("large"),
            b"joe@example.com",
            {b"ann@peer.example": b"ann@peer.example"},
            parameters=b" SIZE=3000",
        )
        hop.heal()
    assert made.heard == [("MAIL", 550)]
    assert hop.commands[-1].endswith(b"@example.com> SIZE=3000")
    hop.offers = OFFERS


# Relays that are broken on purpose.

_EARLY_250: Final = """
from batv.net.connection import NextHopConnection
from batv.smtp.reply import Reply
end_message = NextHopConnection.end_message
def early(self, octets, seconds):
    end_message(self, octets, seconds)
    answer = self._loop.create_future()
    answer.set_result(Reply.of(250, "2.0.0 taken, surely"))
    return answer
NextHopConnection.end_message = early
"""
_SWALLOWED_4YZ: Final = """
from batv.smtp.reply import Reply, ReplyParser
feed = ReplyParser.feed
def swallow(self, octets):
    for reply in feed(self, octets):
        yield Reply.of(250, "2.0.0 never mind") if reply.transient else reply
ReplyParser.feed = swallow
"""
_DROPPED_RECIPIENT: Final = """
from batv.net.connection import NextHopConnection
from batv.smtp.reply import Reply
send = NextHopConnection.send
def drop(self, line, seconds):
    if line.startswith(b"RCPT") and b"bob@" in line:
        answer = self._loop.create_future()
        answer.set_result(Reply.of(250, "2.1.5 noted, surely"))
        return answer
    return send(self, line, seconds)
NextHopConnection.send = drop
"""
_FAULT_TO_5YZ: Final = """
from batv.proxy import session
from batv.smtp.reply import Reply
session._LATER = Reply.of(554, "5.3.0 broken")
"""
_TRIMMED_LINES: Final = """
from batv.net.connection import NextHopConnection
write = NextHopConnection._write
def trim(self, octets):
    write(self, octets.replace(b"spaces  ", b"spaces"))
NextHopConnection._write = trim
"""
_FORGED_UNRECORDED: Final = """
from batv.store.journal import Journal
Journal.write = lambda self, event: True
"""
_KEPT_CONNECTION: Final = """
from batv.net.connection import NextHopConnection
give_up = NextHopConnection._break
kept = []
def keep(self, *what):
    kept.append(self._transport)
    self._transport = None
    give_up(self, *what)
NextHopConnection._break = keep
"""
_FAULT_SWALLOWED: Final = """
from batv.net.connection import NextHopFault
from batv.proxy.transaction import Transaction
from batv.smtp.reply import Reply
send_dot = Transaction.send_dot
async def swallow(self):
    try:
        return await send_dot(self)
    except NextHopFault:
        return Reply.of(250, "2.0.0 it has it, surely")
Transaction.send_dot = swallow
"""


def cell_of(stage: Stage, fault: Fault, flow: Flow = Flow.OUTBOUND, *, several: bool = False) -> Cell:
    """Return a cell in which nothing is special."""
    return Cell(stage, fault, flow, several=several, pipelined=False, tls=False, stores=False, asyncio=False)


@pytest.mark.parametrize(
    ("code", "where", "law"),
    [
        pytest.param(_EARLY_250, cell_of(Stage.DOT, Fault.LATER), "250 only for", id="250-before-the-next-hop"),
        pytest.param(_EARLY_250, cell_of(Stage.DOT, Fault.CLOSE), "250 only for", id="250-before-it-closes"),
        pytest.param(_FAULT_SWALLOWED, cell_of(Stage.DOT, Fault.RESET), "250 only for", id="250-after-a-fault"),
        pytest.param(_SWALLOWED_4YZ, cell_of(Stage.DOT, Fault.LATER), "250 only for", id="4yz-swallowed-at-the-dot"),
        pytest.param(
            _SWALLOWED_4YZ,
            cell_of(Stage.LAST_RCPT, Fault.LATER, Flow.GENUINE, several=True),
            "250 only for",
            id="4yz-swallowed-at-RCPT",
        ),
        pytest.param(
            _DROPPED_RECIPIENT,
            cell_of(Stage.RSET, Fault.CLOSE, several=True),
            "250 only for",
            id="recipient-dropped",
        ),
        pytest.param(
            _DROPPED_RECIPIENT,
            cell_of(Stage.FIRST_RCPT, Fault.LATER, Flow.MIXED, several=True),
            "250 only for|503",
            id="recipient-dropped-from-a-bounce",
        ),
        pytest.param(_FAULT_TO_5YZ, cell_of(Stage.DATA, Fault.CLOSE), "never 5yz", id="fault-turned-into-5yz"),
        pytest.param(_TRIMMED_LINES, cell_of(Stage.QUIT, Fault.CLOSE), "octet for octet", id="lines-trimmed"),
        pytest.param(
            _FORGED_UNRECORDED, cell_of(Stage.QUIT, Fault.CLOSE, Flow.MIXED), "or on record", id="discard-unrecorded"
        ),
        pytest.param(_KEPT_CONNECTION, cell_of(Stage.MAIL, Fault.SILENCE), "is given up", id="connection-kept"),
    ],
)
def test_a_broken_relay_does_not_pass_the_matrix(benches: Benches, code: str, where: Cell, law: str) -> None:
    """A table that nothing could fail would say nothing."""
    bench = benches.of(where, code)
    with pytest.raises(AssertionError, match=law):
        check(bench, where)


def test_the_table_in_the_readme_is_that_of_the_tests() -> None:
    """Who reads the table reads what is tested."""
    assert README.read_text(encoding="utf-8") == page(), "run python -m tests.faults.table"
