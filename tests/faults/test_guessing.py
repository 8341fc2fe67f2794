"""Somebody tries tags: he learns nothing, what he hits is put aside, and nobody else's bounce waits or is lost."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.observe.event import Direction, Notice
from batv.observe.log import log_line
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, Relay, badly_tagged, expired, merged, signed, unknown_key

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILTER: Final = Path(__file__).parents[2] / "scripts/deploy/fail2ban-filter.conf"
_OK: Final = b"250 2.0.0 Ok\r\n"
_RECIPIENT_OK: Final = b"250 2.1.5 Ok\r\n"
_JOE: Final = b"joe@example.com"
_ANN: Final = b"ann@example.com"
_ATTACKER: Final = b"192.0.2.66"
_NEIGHBOUR: Final = b"192.0.2.10"
_ELSEWHERE: Final = b"198.51.100.7"
_MAX: Final = 5

_TRIES: Final = {
    "no tag": _JOE,
    "malformed": b"prvs=junk=" + _JOE,
    "unknown key": unknown_key(_JOE),
    "wrong": badly_tagged(_JOE),
    "expired": expired(_JOE),
    "good": signed(_JOE),
}


def _changes(**more: object) -> dict[str, Any]:
    base = {"inbound": {"xclient_from": ["127.0.0.0/8"]}, "guessing": {"max_failures": _MAX}}
    return merged(base, more)


async def _come_from(client: Client, address: bytes) -> None:
    assert (await client.say(b"XCLIENT ADDR=" + address))[:3] == b"220"
    await client.say(b"EHLO mx.peer.example")


async def _bounce(client: Client, recipients: Sequence[bytes]) -> list[bytes]:
    """Send a bounce; return all that is heard."""
    heard = [await client.say(b"MAIL FROM:<>")]
    heard += [await client.say(b"RCPT TO:<" + recipient + b">") for recipient in recipients]
    heard.append(await client.say(b"DATA"))
    if heard[-1][:3] == b"354":
        heard.append(await client.say(b"Subject: x\r\n\r\nx\r\n."))
    return [*heard, await client.say(b"NOOP")]


def _last(relay: Relay) -> tuple[str, str]:
    record = json.loads(relay.journal.read_text(encoding="utf-8").splitlines()[-1])
    return record["disposition"], record["reason"]


def _kept(relay: Relay) -> int:
    return len(list(relay.quarantine.iterdir())) if relay.quarantine.is_dir() else 0


def _notices(relay: Relay) -> list[Notice]:
    return [event for event in relay.events if isinstance(event, Notice) and "guessed" in event.what]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("on_forged", ["discard", "reject", "quarantine", "mark"])
def test_an_attack_from_the_network_of_a_big_provider_hits_the_attack_alone(
    on_forged: str, loop: str, tmp_path: Path
) -> None:
    """What he hits is kept for an administrator; his neighbours' bounces to others pass, and others' to that user."""

    async def test() -> None:
        changes = _changes(domains={"example.com": {"on_forged": on_forged}})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, relay):

            async def delivered(source: bytes, recipient: bytes) -> None:
                recorder.clear()
                await _come_from(client, source)
                assert (await _bounce(client, [signed(recipient)]))[1:3:2] == [_RECIPIENT_OK]
                assert len(recorder.messages) == 1
                assert _last(relay) == ("rewrite", "tag good")

            await delivered(_NEIGHBOUR, _JOE)
            await _come_from(client, _ATTACKER)
            for guess in [badly_tagged(_JOE), expired(_JOE), unknown_key(_JOE), b"prvs=junk=" + _JOE] * 2:
                await _bounce(client, [guess])
            kept = _kept(relay)
            recorder.clear()
            assert (await _bounce(client, [signed(_JOE)]))[3] == _OK
            assert recorder.messages == []
            assert _last(relay) == ("quarantine", "tag good; many failed tags from 192.0.2.0/24")
            assert _kept(relay) == kept + 1
            for source, recipient in ((_NEIGHBOUR, _ANN), (_ELSEWHERE, _JOE), (_ELSEWHERE, _ANN)):
                await delivered(source, recipient)
            assert len(_notices(relay)) == 1

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("guarded", [False, True], ids=["usual", "guessing is guarded against"])
@pytest.mark.parametrize("on_forged", ["discard", "quarantine", "mark", "pass"])
def test_what_is_heard_is_the_same_whatever_a_tag_is_worth(on_forged: str, guarded: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a parameter of a test
    """To the octet, in each command, one by one or in one go, before the limit on guessing and beyond it."""

    async def test() -> None:
        changes = _changes(domains={"example.com": {"on_forged": on_forged}}, guessing={"max_failures": int(guarded)})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, _):
            heard = {name: await _bounce(client, [recipient]) for name, recipient in _TRIES.items()}
            assert len({tuple(each) for each in heard.values()}) == 1, heard
            assert heard["good"] == [_OK, _RECIPIENT_OK, b"354 End data with <CR><LF>.<CR><LF>\r\n", _OK, _OK]
            for name, recipient in _TRIES.items():
                said = [await client.say(b"MAIL FROM:<>\r\nRCPT TO:<" + recipient + b">\r\nDATA")]
                said += [await client.reply() for _ in range(2)]
                assert [*said, await client.say(b"x\r\n.")] == [_OK, _RECIPIENT_OK, heard["good"][2], _OK], name

    asyncio.run(test())


def test_with_reject_what_is_heard_is_the_same_up_to_the_message(tmp_path: Path) -> None:
    """That forged bounces are refused is what the site wants; which of the forged ones it was, nobody hears."""

    async def test() -> None:
        changes = _changes(domains={"example.com": {"on_forged": "reject"}}, guessing={"max_failures": 0})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, _):
            heard = {name: await _bounce(client, [recipient]) for name, recipient in _TRIES.items()}
            good = heard.pop("good")
            assert len({tuple(each) for each in heard.values()}) == 1, heard
            assert {each[2] for each in heard.values()} == {b"550 5.7.1 Message refused\r\n"}
            assert good[:2] == heard["wrong"][:2]

    asyncio.run(test())


def test_where_the_quarantine_has_no_room_the_bounce_is_delivered(tmp_path: Path) -> None:
    """It may be genuine: it is neither lost nor refused for a suspicion; the record tells."""
    folder = tmp_path / "var/quarantine/new"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(bytes(1 << 20))

    async def test() -> None:
        changes = _changes(state={"quarantine_max_mib": 1})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, relay):
            for _ in range(_MAX):
                await _bounce(client, [badly_tagged(_JOE)])
            assert (await _bounce(client, [signed(_JOE)]))[3] == _OK
            assert len(recorder.messages) == 1
            assert _last(relay) == ("rewrite", "tag good; many failed tags from 127.0.0.0/24; quarantine full")

    asyncio.run(test())


def test_a_bounce_for_which_the_quarantine_becomes_too_small_is_kept_whole(tmp_path: Path) -> None:
    """It had room when its recipient was named; to refuse it now would tell that the tag is good."""
    folder = tmp_path / "var/quarantine/new"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(bytes((1 << 20) - 8192))

    async def test() -> None:
        changes = _changes(state={"quarantine_max_mib": 1})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            for _ in range(_MAX):
                await _bounce(client, [badly_tagged(_JOE)])
            await client.say(b"MAIL FROM:<>")
            for recipient in (signed(_JOE), _ANN):
                assert await client.say(b"RCPT TO:<" + recipient + b">") == _RECIPIENT_OK
            await client.say(b"DATA")
            await client.pieces([b"x" * 998 + b"\r\n"] * 30)
            assert await client.say(b".") == _OK
            assert recorder.messages == []
            (new,) = (path for path in folder.iterdir() if path.name != "old")
            assert new.stat().st_size > 29_000

    asyncio.run(test())


def test_where_forged_bounces_are_let_through_nothing_is_counted(tmp_path: Path) -> None:
    """There is nothing to guess for."""

    async def test() -> None:
        changes = _changes(domains={"example.com": {"on_forged": "pass"}})
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, relay):
            for _ in range(3 * _MAX):
                await _bounce(client, [badly_tagged(_JOE)])
            await _bounce(client, [signed(_JOE)])
            assert _last(relay) == ("rewrite", "tag good")
            assert _notices(relay) == []

    asyncio.run(test())


def test_bounces_without_a_tag_are_no_tries(tmp_path: Path) -> None:
    """Backscatter is that, in floods; genuine bounces come from the same servers."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, _changes()) as (client, recorder, relay):
            for _ in range(3 * _MAX):
                await _bounce(client, [_JOE])
            await _bounce(client, [signed(_JOE)])
            assert _last(relay) == ("rewrite", "tag good")
            assert len(recorder.messages) == 1

    asyncio.run(test())


def _failregex() -> re.Pattern[str]:
    """Return what fail2ban makes of the filter: `<ADDR>` is an IP address, and the log's own time is gone."""
    parsed = configparser.RawConfigParser()
    parsed.read_string(_FILTER.read_text(encoding="utf-8"))
    address = r"(?P<ip>[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)"
    return re.compile(parsed["Definition"]["failregex"].replace("<ADDR>", address))


def test_the_filter_of_fail2ban_finds_who_guesses_and_nobody_else(tmp_path: Path) -> None:
    """As the line stands in the log and in the system's journal; what a client calls itself gets nobody banned."""

    async def test() -> None:
        forged = "batv/WARNING: tags are being guessed: client=203.0.113.1, network=x"
        async with recorded(tmp_path, Direction.INBOUND, _changes()) as (client, _, relay):
            for address in (_ATTACKER, b"IPv6:2001:db8::66"):
                assert (await client.say(b"XCLIENT ADDR=" + address))[:3] == b"220"
                await client.say(b"EHLO " + forged.encode())
                for _ in range(_MAX):
                    await _bounce(client, [badly_tagged(_JOE)])
            lines = [
                f"batv/{event.level.name if isinstance(event, Notice) else 'INFO'}: {log_line(event)}"
                for event in relay.events
            ]
            assert any(forged in line for line in lines)
            for prefix in ("", "mx1 batv[4711]: "):
                found = [match["ip"] for line in lines if (match := _failregex().search(prefix + line))]
                assert found == ["192.0.2.66", "2001:db8::66"]

    asyncio.run(test())
