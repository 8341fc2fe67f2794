"""A clock that is wrong: no genuine bounce is lost for it, and nothing is signed that would not verify."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.address import Mailbox
from batv.day import Day
from batv.observe.event import Direction, Level, Notice
from batv.signing import verify
from batv.verdict import Verdict
from tests.support.command import TODAY, Command
from tests.support.next_hop import RecordingNextHop
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, Relay, World, badly_tagged, expired, noon, signed
from tests.support.service import SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT: Final = Path(__file__).parents[2]
_DAY: Final = 86_400
_LATER: Final = b"451 4.3.0 Temporary failure, try again later\r\n"
_RECIPIENT_OK: Final = b"250 2.1.5 Ok\r\n"
_OFFSET: Final = "offset"
"""File that says by how many seconds the clock of a process is wrong; there is none while it is right."""

_WITH_CLOCK: Final = f"""
import time
from pathlib import Path
right = time.time
def wrong():
    try:
        return right() + float(Path({_OFFSET!r}).read_text() or 0)
    except FileNotFoundError:
        return right()
time.time = wrong
{SERVE}
"""


class _Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.days = 0.0

    def __call__(self) -> float:
        """Return noon of the fixed day, or of another."""
        return noon() + self.days * _DAY


def _said(relay: Relay) -> list[tuple[Level, str]]:
    return [(event.level, event.what) for event in relay.events if isinstance(event, Notice) and "clock" in event.what]


async def _recipient(client: Client, address: bytes, sender: bytes = b"") -> bytes:
    """Return the reply to a recipient, and forget the transaction."""
    assert (await client.say(b"MAIL FROM:<" + sender + b">"))[:3] == b"250"
    reply = await client.say(b"RCPT TO:<" + address + b">")
    await client.say(b"RSET")
    return reply


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("on_forged", ["discard", "quarantine", "reject"])
@pytest.mark.parametrize("days", [-400, -2, 2, 400], ids=str)
def test_while_the_clock_is_wrong_bounces_wait_with_their_servers(
    days: int, on_forged: str, loop: str, tmp_path: Path
) -> None:
    """A bounce that looks forged may be genuine. One whose tag is good even so passes, as does ordinary mail."""
    clock = _Clock()

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": on_forged}}}
        world = World(clock=clock)
        async with recorded(tmp_path, Direction.INBOUND, changes, world=world) as (client, recorder, relay):
            assert await _recipient(client, b"joe@example.com") == _RECIPIENT_OK
            clock.days = days
            for address in (b"joe@example.com", expired(b"joe@example.com"), badly_tagged(b"joe@example.com")):
                assert await _recipient(client, address) == _LATER
            tag_good = abs(days) < 7 and days > 0
            assert await _recipient(client, signed(b"joe@example.com")) == (_RECIPIENT_OK if tag_good else _LATER)
            assert (await _recipient(client, b"joe@example.com", b"ann@peer.example"))[:3] == b"250"
            assert recorder.messages == []
            clock.days = 0.2
            assert await _recipient(client, b"joe@example.com") == _RECIPIENT_OK
            assert await _recipient(client, signed(b"joe@example.com")) == _RECIPIENT_OK
            said = "the clock cannot be right: what would be signed, and forged bounces, get 451"
            assert _said(relay) == [(Level.ERROR, said), (Level.INFO, "the clock is believed again")]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", LOOPS)
def test_in_one_message_the_good_recipient_is_served_and_the_doubtful_one_waits(loop: str, tmp_path: Path) -> None:
    """Also where both are named in one go."""
    clock = _Clock()

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, world=World(clock=clock)) as (client, recorder, _):
            await _recipient(client, b"joe@example.com")
            clock.days = 2
            group = [b"MAIL FROM:<>"]
            group += [b"RCPT TO:<" + each + b">" for each in (signed(b"joe@example.com"), b"ann@example.com")]
            assert (await client.say(b"\r\n".join([*group, b"DATA"])))[:3] == b"250"
            assert [await client.reply() for _ in range(2)] == [_RECIPIENT_OK, _LATER]
            assert (await client.reply())[:3] == b"354"
            assert await client.say(b".") == b"250 2.0.0 Ok\r\n"
            assert [recipients for recipients, _ in recorder.envelopes] == [(b"RCPT TO:<joe@example.com>\r\n",)]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("on_forged", ["mark", "pass"])
def test_what_the_site_lets_through_is_let_through(on_forged: str, tmp_path: Path) -> None:
    """Nobody loses a message there, whatever the day."""
    clock = _Clock()

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": on_forged}}}
        async with recorded(tmp_path, Direction.INBOUND, changes, world=World(clock=clock)) as (client, _, _):
            await _recipient(client, b"joe@example.com")
            clock.days = 400
            assert await _recipient(client, signed(b"joe@example.com")) == _RECIPIENT_OK

    asyncio.run(test())


def test_while_the_clock_is_wrong_nothing_is_signed(tmp_path: Path) -> None:
    """The tag would be of a wrong day, and the bounces to it forged; mail that is not signed anyway goes out."""
    clock = _Clock()

    async def test() -> None:
        async with recorded(tmp_path, Direction.OUTBOUND, world=World(clock=clock)) as (client, recorder, _):
            assert (await _recipient(client, b"ann@peer.example", b"joe@example.com"))[:3] == b"250"
            recorder.clear()
            for days in (400, -400):
                clock.days = days
                assert await client.say(b"MAIL FROM:<joe@example.com>") == _LATER
                assert (await _recipient(client, b"ann@peer.example", b"eve@elsewhere.example"))[:3] == b"250"
                assert (await _recipient(client, b"ann@peer.example"))[:3] == b"250"
            assert not any(b"joe" in command for command in recorder.commands)
            clock.days = 0
            assert (await _recipient(client, b"ann@peer.example", b"joe@example.com"))[:3] == b"250"

    asyncio.run(test())


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Europe/Berlin"])
def test_the_time_zone_does_not_matter(
    zone: str, tmp_path: Path, next_hop: RecordingNextHop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a day's difference from UTC nor a change to summer time is a jump."""
    monkeypatch.setenv("TZ", zone)
    with ServiceProcess(tmp_path, next_hop.address) as service, SmtpClient(service.outbound) as client:
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
        tagged = Mailbox.parse(next_hop.messages[-1].mail.strip(b"<>"))
        assert verify(tagged, service.ring, today()).verdict is Verdict.VALID
        assert "clock" not in service.log


# A service that runs, and the command.


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for all tests."""
    with RecordingNextHop() as hop:
        yield hop


def _set_off(service: ServiceProcess, days: float) -> None:
    """Let the clock of the service be wrong by so many days; it never reads half of that."""
    new = service.folder / "offset.new"
    new.write_text(str(days * _DAY))
    new.rename(service.folder / _OFFSET)


def _forged(service: ServiceProcess) -> int:
    with SmtpClient(service.inbound) as client:
        return client.mail(b"", [b"joe@example.com"], b"x\r\n").code


def _batv(service: ServiceProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = _WITH_CLOCK
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(service.config), *arguments],
        cwd=service.folder,
        env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_service_whose_clock_jumps_says_so_at_once_and_goes_on_when_it_is_told_that_it_is_right(
    tmp_path: Path, next_hop: RecordingNextHop
) -> None:
    """Without any mail, and within 5 seconds; the word counts until the next jump, which is told of too."""
    with ServiceProcess(tmp_path, next_hop.address, code=_WITH_CLOCK) as service:
        assert _forged(service) == 250
        _set_off(service, 400)
        service.wait_for_log(
            r"^batv/ERROR: the clock cannot be right.*has jumped 400\.0 days forward.*batv clock trust"
        )
        assert _forged(service) == 451
        at = len(service.log)
        assert _batv(service, "clock", "trust").returncode == 0
        until(lambda: "believed again" in service.log[at:], "belief", seconds=5)
        assert _forged(service) == 250
        at = len(service.log)
        _set_off(service, 0)
        service.wait_for_log(r"^batv/ERROR: the clock cannot be right.*400\.0 days back", after=at)
        assert _forged(service) == 451


def test_a_host_that_starts_in_1970_defers_until_a_time_server_has_set_its_clock(
    tmp_path: Path, next_hop: RecordingNextHop
) -> None:
    """Nobody has to do anything about it, and every tag is good again."""
    service = ServiceProcess(tmp_path, next_hop.address, code=_WITH_CLOCK)
    _set_off(service, -today().number)
    with service:
        assert "1970-01-0" in service.wait_for_log(r"^batv/ERROR: the clock cannot be right.*$")[0]
        assert _forged(service) == 451
        with SmtpClient(service.outbound) as client:
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 451
        _set_off(service, 0)
        service.wait_for_log("^batv/INFO: the clock is believed again")
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250
        with SmtpClient(service.outbound) as client:
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250


def test_a_word_on_a_key_from_the_future_survives_a_restart(tmp_path: Path, next_hop: RecordingNextHop) -> None:
    """The key was made where the clock was wrong: the site would else stand still until that day."""
    service = ServiceProcess(tmp_path, next_hop.address, code=_WITH_CLOCK)
    _set_off(service, -30)
    with service:
        service.wait_for_log("the clock cannot be right")
        assert _batv(service, "clock", "trust").returncode == 0
        service.wait_for_log("the clock is believed again")
    again = ServiceProcess(tmp_path, next_hop.address, code=_WITH_CLOCK)
    with again:
        assert _forged(again) == 250
        assert "clock" not in again.log


def test_a_damaged_word_is_told_of_and_stops_nothing(tmp_path: Path, next_hop: RecordingNextHop) -> None:
    """The clock is right: nobody's word is needed."""
    (tmp_path / "var").mkdir(mode=0o700)
    (tmp_path / "var/clock.json").write_text("{")
    with ServiceProcess(tmp_path, next_hop.address) as service:
        service.wait_for_log(r"^batv/ERROR: nobody's word on the clock is heard.*batv clock trust")
        assert _forged(service) == 250


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A site without keys."""
    return Command(tmp_path, capsys)


def test_the_command_says_what_it_can_know(batv: Command) -> None:
    """Exit 1 where the clock cannot be right; the word is kept beside the journal."""
    batv("key", "new")
    assert batv("clock").status == 0
    fields = batv("clock", "--json").fields
    assert fields == {"day": TODAY.iso(), "newest_key": TODAY.iso(), "trusted_on": None, "doubt": None}
    batv.today = Day.from_iso("1970-01-01")
    answer = batv("clock")
    assert answer.status == 1
    assert f"no: the clock says 1970-01-01, and there is a key of {TODAY}" in answer.out
    (batv.folder / "var").mkdir(mode=0o700)
    answer = batv("clock", "trust")
    assert (answer.status, answer.out) == (0, "the clock is right: it is 1970-01-01 (UTC)\n")
    assert batv("clock").status == 0
    assert batv("clock", "--json").fields["trusted_on"] == "1970-01-01"


def test_the_command_needs_the_folder_of_the_service(batv: Command) -> None:
    """Where it does not exist, no service would hear the word."""
    batv("key", "new")
    answer = batv("clock", "trust")
    assert answer.status == 73
    assert answer.err.startswith("batv: ")
