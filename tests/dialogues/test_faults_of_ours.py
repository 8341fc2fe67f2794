"""What clients hear when it is us who fail: the disk, or our own code. Never 5yz, never 250 without a record."""

from __future__ import annotations

import asyncio
import resource
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest

from batv.observe.event import Direction
from tests.support.recorder import recorded
from tests.support.relay import LOOPS, World, noon, signed

if TYPE_CHECKING:
    from pathlib import Path

LATER: Final = b"451 4.3.0 Temporary failure, try again later\r\n"
RECIPIENT_OK: Final = b"250 2.1.5 Ok\r\n"
GOOD: Final = b"RCPT TO:<" + signed(b"joe@example.com") + b">"
FORGED: Final = b"RCPT TO:<ann@example.com>"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("on_forged", ["discard", "quarantine"])
def test_without_a_journal_nothing_is_discarded(on_forged: str, loop: str, tmp_path: Path) -> None:
    """A discarded message exists nowhere but in its record: without one it stays with its client."""

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": on_forged}}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, relay):
            # Somebody has moved the journal away, and a new one cannot be begun.
            relay.journal.unlink()
            relay.journal.mkdir()
            for recipients, reply in (
                ([FORGED], LATER),
                ([GOOD, FORGED], LATER),
                ([GOOD], b"250 2.0.0 Ok\r\n"),  # the next hop has it: a second copy would help nobody
            ):
                await client.say(b"MAIL FROM:<>")
                for recipient in recipients:
                    assert await client.say(recipient) == RECIPIENT_OK
                assert (await client.say(b"DATA"))[:3] == b"354"
                assert await client.say(b"Subject: x\r\n.") == reply
            assert len(recorder.messages) == 1

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", LOOPS)
def test_without_room_for_the_quarantine_the_message_stays_with_its_client(loop: str, tmp_path: Path) -> None:
    """A message that cannot be kept is refused for now, before its content comes, and the session goes on."""
    (tmp_path / "var").mkdir(mode=0o700)
    (tmp_path / "var" / "quarantine").touch()

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": "quarantine"}}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            for recipients in ([FORGED], [GOOD, FORGED]):
                await client.say(b"MAIL FROM:<>")
                for recipient in recipients:
                    assert await client.say(recipient) == RECIPIENT_OK
                assert await client.say(b"DATA") == LATER
            assert recorder.messages == []
            await client.say(b"MAIL FROM:<>")
            assert await client.say(GOOD) == RECIPIENT_OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            assert await client.say(b".") == b"250 2.0.0 Ok\r\n"

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("recipients", [[FORGED], [GOOD, FORGED]], ids=["forged", "mixed"])
def test_a_quarantine_that_vanishes_keeps_the_message_with_its_client(
    recipients: list[bytes], loop: str, tmp_path: Path
) -> None:
    """What fails at the end of the message is 451 like what fails before it."""

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": "quarantine"}}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, relay):
            await client.say(b"MAIL FROM:<>")
            for recipient in recipients:
                assert await client.say(recipient) == RECIPIENT_OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            relay.quarantine.rmdir()
            assert await client.say(b"Subject: x\r\n.") == LATER
            assert list(relay.quarantine.parent.glob("*/*")) == []

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_quarantine_that_was_full_for_a_while_keeps_no_message_with_a_hole(loop: str, tmp_path: Path) -> None:
    """Where a piece of the message could not be kept, the message stays with its client, though the rest could be."""
    limit = 20_000

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": "quarantine"}}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, relay):
            await client.say(b"MAIL FROM:<>")
            assert await client.say(FORGED) == RECIPIENT_OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            (under_way,) = (relay.quarantine.parent / "tmp").iterdir()
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                await client.pieces([b"x" * 998 + b"\r\n"] * 40)
                while under_way.stat().st_size < limit:  # noqa: ASYNC110 -- a file system tells nobody
                    await asyncio.sleep(0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert await client.say(b"end\r\n.") == LATER
            assert list(relay.quarantine.parent.glob("*/*")) == []

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("direction", [Direction.OUTBOUND, Direction.INBOUND])
def test_what_the_next_hop_has_taken_is_not_sent_again_where_no_thread_can_be_started(
    direction: Direction, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk and ledger are written to by threads. What would exist in its record alone stays with its client."""

    def no_more(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        changes = {"ledger": {"enabled": True}, "journal": {"fsync": True}}
        async with recorded(tmp_path, direction, changes) as (client, recorder, relay):
            outbound = direction is Direction.OUTBOUND
            with monkeypatch.context() as patch:
                patch.setattr(Thread, "start", no_more)
                await client.say(b"MAIL FROM:<joe@example.com>" if outbound else b"MAIL FROM:<>")
                await client.say(b"RCPT TO:<bob@peer.example>" if outbound else GOOD)
                await client.say(b"DATA")
                assert (await client.say(b"Message-ID: <1@x>\r\n."))[:3] == b"250"
                if not outbound:
                    await client.say(b"MAIL FROM:<>")
                    await client.say(FORGED)
                    await client.say(b"DATA")
                    assert await client.say(b"Subject: x\r\n.") == LATER
            assert len(recorder.messages) == 1
            assert any("can't start new thread" in str(event) for event in relay.events)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


class Clock:
    """A clock that fails once when it is told to."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self) -> float:
        """Return noon of the fixed day."""
        if self.fails:
            self.fails = False
            raise RuntimeError("secret=hunter2")
        return noon()


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_of_ours_is_451_and_tells_nothing(loop: str, tmp_path: Path) -> None:
    """The mail stays with its client, whose session goes on; the cause is for the log alone."""
    clock = Clock()

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_forged": "quarantine"}}}
        async with recorded(tmp_path, Direction.INBOUND, changes, world=World(clock=clock)) as (
            client,
            recorder,
            relay,
        ):
            clock.fails = True
            assert await client.say(b"MAIL FROM:<>") == LATER
            assert await client.say(GOOD) == b"503 5.5.1 Bad sequence of commands\r\n"
            await client.say(b"MAIL FROM:<>")
            assert await client.say(GOOD) == RECIPIENT_OK
            assert await client.say(FORGED) == RECIPIENT_OK
            clock.fails = True
            assert await client.say(b"DATA") == LATER
            assert recorder.messages == []
            await client.say(b"MAIL FROM:<>")
            assert await client.say(GOOD) == RECIPIENT_OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            assert await client.say(b".") == b"250 2.0.0 Ok\r\n"
            assert len(relay.errors) == 2
            assert "RuntimeError" in relay.errors[0]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())
