"""A quarantine that has reached its size: forged bounces are discarded, on record, and nobody hears of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.observe.event import Direction, Level, Notice
from tests.support.next_hop import RecordingNextHop
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, Relay, signed
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_GOOD: Final = b"RCPT TO:<" + signed(b"joe@example.com") + b">"
_FORGED: Final = b"RCPT TO:<ann@example.com>"
_OK: Final = b"250 2.0.0 Ok\r\n"
_LATER: Final = b"451 4.3.0 Temporary failure, try again later\r\n"
_LINE: Final = b"x" * 998 + b"\r\n"
_BLOCK: Final = 4096
_MEBIBYTE: Final = 1 << 20


def _keeps(mebibytes: int) -> dict[str, Any]:
    return {
        "domains": {"example.com": {"on_forged": "quarantine"}},
        "state": {"quarantine_max_mib": mebibytes},
    }


async def _bounce(client: Client, recipients: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """Send a bounce, and return the reply to its message."""
    await client.say(b"MAIL FROM:<>")
    for recipient in recipients:
        assert await client.say(recipient) == b"250 2.1.5 Ok\r\n"
    assert (await client.say(b"DATA"))[:3] == b"354"
    await client.pieces(pieces)
    return await client.say(b".")


def _done(relay: Relay) -> list[tuple[str, str]]:
    """Return the disposition and the reason of each record."""
    records = [json.loads(line) for line in relay.journal.read_text(encoding="utf-8").splitlines()]
    return [(record["disposition"], record["reason"]) for record in records]


def _kept(relay: Relay) -> int:
    return sum(path.is_file() for path in relay.quarantine.parent.rglob("*"))


def _notices(relay: Relay) -> list[Notice]:
    return [event for event in relay.events if isinstance(event, Notice) and event.level is Level.WARNING]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("mebibytes", "pieces"), [(0, []), (1, [_LINE] * 1200)], ids=["from the beginning", "in the message"]
)
def test_what_has_no_room_in_the_quarantine_is_discarded_on_record(
    mebibytes: int, pieces: list[bytes], loop: str, tmp_path: Path
) -> None:
    """The sender hears what he always hears, genuine recipients get the message, and no half copy stays behind."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, _keeps(mebibytes)) as (client, recorder, relay):
            assert await _bounce(client, [_FORGED], pieces) == _OK
            assert await _bounce(client, [_GOOD, _FORGED], pieces) == _OK
            assert _done(relay) == [
                ("discard", "no tag; quarantine full"),
                ("rewrite", "tag good"),
                ("discard", "no tag; quarantine full"),
            ]
            assert [len(message) for message in recorder.messages] == [len(b"".join(pieces)) + 3]
            assert _kept(relay) == 0

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("more", [0, 10, 11, 12, 13, 23])
def test_a_message_that_ends_at_the_limit_is_kept_or_discarded_and_the_record_says_which(
    more: int, tmp_path: Path
) -> None:
    """The last octets of a message are written with its end, and may be the ones for which there is no room."""
    folder = tmp_path / "var/quarantine/new"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(bytes(_MEBIBYTE - _BLOCK))

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, _keeps(1)) as (client, _, relay):
            # The fields of the quarantine come before, so the sizes are those around the end of a block.
            before = len("Return-Path: <>\nX-Original-To: <ann@example.com>\nX-Batv-Verdict: untagged (no tag)\n")
            name = len("X-Batv-Transaction: 0123456789ab.1\n")
            text = b"x" * (_BLOCK - before - name - 12 + more) + b"\r\n"
            assert await _bounce(client, [_FORGED], [text]) == _OK
            kept = _kept(relay) == 2
            assert _done(relay) == [("quarantine", "no tag") if kept else ("discard", "no tag; quarantine full")]
            assert kept == (more <= 11)

    asyncio.run(test())


def test_without_room_and_without_a_journal_the_message_stays_with_its_client(tmp_path: Path) -> None:
    """What is kept nowhere is on record at least, or is not taken."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, _keeps(0)) as (client, recorder, relay):
            relay.journal.unlink()
            relay.journal.mkdir()
            assert await _bounce(client, [_FORGED]) == _LATER
            assert await _bounce(client, [_GOOD, _FORGED]) == _LATER
            assert recorder.messages == []

    asyncio.run(test())


def test_a_flood_into_a_full_quarantine_does_not_fill_the_log(tmp_path: Path) -> None:
    """One warning says what becomes of forged bounces and what to do; it comes again after a minute at the soonest."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, _keeps(0)) as (client, _, relay):
            for _ in range(20):
                assert await _bounce(client, [_FORGED]) == _OK
            (notice,) = _notices(relay)
            assert notice.what == "forged bounces are discarded, not kept"
            assert "raise state.quarantine_max_mib" in str(notice.fields["cause"])

    asyncio.run(test())


def test_a_reload_gives_the_quarantine_another_size(tmp_path: Path) -> None:
    """More room counts from the next message on, and what is in it already counts too, in another folder as well."""
    old, new = tmp_path / "var/quarantine", tmp_path / "elsewhere/quarantine"
    for folder in (old, new):
        (folder / "new").mkdir(parents=True, mode=0o700)
        (folder / "new/old").write_bytes(bytes(_MEBIBYTE))

    def state(directory: str, mebibytes: int) -> str:
        return f'[state]\ndirectory = "{directory}"\nquarantine_max_mib = {mebibytes}\n'

    with (
        RecordingNextHop() as next_hop,
        ServiceProcess(tmp_path, next_hop.address, state("var", 1), on_forged="quarantine") as service,
    ):

        def kept(folder: Path) -> int:
            with SmtpClient(service.inbound) as client:
                assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
            return len(list((folder / "new").iterdir())) - 1

        def reload(settings: str) -> None:
            service.configure(settings, on_forged="quarantine")
            at = len(service.log)
            service.reload()
            service.wait_for_log("reloaded", after=at)

        assert kept(old) == 0
        reload(state("var", 2))
        assert kept(old) == 1
        reload(state("elsewhere", 1))
        assert kept(new) == 0
        reload(state("elsewhere", 2))
        assert kept(new) == 1
