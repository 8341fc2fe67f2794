"""Lists of senders of backscatter, asked of a real DNS server, and what becomes of a bounce by what they say."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.config import Endpoint
from batv.net import dnsbl
from batv.net.dnsbl import Blocklists, query_name
from batv.net.resolver import Resolver
from batv.observe.event import Direction
from tests.support.dns import dns_server, failing, listing, misbehaving, silent
from tests.support.next_hop import RecordingNextHop
from tests.support.recorder import Client, Recorder, recorded
from tests.support.relay import LOOPS, running, signed
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from batv.net.resolver import DnsFault
    from tests.support.dns import DnsServer, Misbehaving
    from tests.support.relay import Relay

pytestmark = pytest.mark.dns

_ZONE: Final = "bl.example"
_LISTED: Final = "11.0.0.2"
_LISTED_NAME: Final = "2.0.0.11.bl.example"
_CLEAN: Final = "11.0.0.3"
_CLEAN_NAME: Final = "3.0.0.11.bl.example"
_LISTED_V6: Final = "2600::2"
_CONTROL: Final = "1.0.0.127.bl.example"
_RECORDS: Final = (
    f"local=/{_ZONE}/",
    f"address=/{_LISTED_NAME}/127.0.0.2",
    f"address=/{'2.' + '0.' * 27 + '0.0.6.2'}.{_ZONE}/127.0.0.2",
    # A list that was given up and has everybody, and the answers of a server that invents them.
    "address=/everybody.example/127.0.0.2",
    "address=/invented.example/198.51.100.7",
    "address=/refuses.example/127.255.255.254",
)
_SECONDS: Final = 2.0
_SOON: Final = 3.0
"""Seconds within which what waits for nothing is done, far less than any limit that is set here."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DnsServer]:
    """Run a DNS server that has the lists."""
    with dns_server(tmp_path, _RECORDS, ttl=100) as running:
        yield running


def _on(loop: str, test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test)


class _Lists(Blocklists):
    """Lists with a clock that a test sets, and a record of those that were given up for a while."""

    def __init__(self, address: str, zones: Sequence[str] = (_ZONE,), seconds: float = _SECONDS) -> None:
        self.time = 0.0
        self.given_up: asyncio.Queue[tuple[str, DnsFault]] = asyncio.Queue()
        resolver = Resolver([Endpoint.parse(address)], seconds)
        super().__init__(zones, resolver, seconds, lambda *said: self.given_up.put_nowait(said), lambda: self.time)

    async def of(self, address: str) -> str:
        """Return the list that has an address, or nothing."""
        inquiry = self.ask(address)
        assert inquiry is not None
        return await inquiry.zone()


# The lists.


@pytest.mark.parametrize("loop", LOOPS)
def test_a_list_says_who_is_on_it_and_who_is_not(loop: str, server: DnsServer) -> None:
    """IPv4 and IPv6, on both event loops."""

    async def test() -> None:
        lists = _Lists(server.address)
        assert [await lists.of(each) for each in (_LISTED, _LISTED_V6, _CLEAN, "2600::3")] == [_ZONE, _ZONE, "", ""]
        assert lists.given_up.empty()

    _on(loop, test())


def test_both_answers_are_kept_for_their_time_and_no_longer(server: DnsServer) -> None:
    """A flood of bounces from one server costs one question; a server that was taken off a list gets its mail back."""

    async def test() -> None:
        lists = _Lists(server.address)
        for _ in range(5):
            assert await lists.of(_LISTED) == _ZONE
            assert await lists.of(_CLEAN) == ""
        assert (server.questions(_LISTED_NAME), server.questions(_CLEAN_NAME)) == (1, 1)
        lists.time = 99.0
        assert await lists.of(_LISTED) == _ZONE
        assert server.questions(_LISTED_NAME) == 1
        lists.time = 101.0
        assert await lists.of(_LISTED) == _ZONE
        assert server.questions(_LISTED_NAME) == 2
        assert await lists.of(_CLEAN) == ""
        assert server.questions(_CLEAN_NAME) == 1
        # dnsmasq gives no SOA with its no, and then it may be kept for 300 seconds.
        lists.time = 301.0
        assert await lists.of(_CLEAN) == ""
        assert server.questions(_CLEAN_NAME) == 2

    asyncio.run(test())


def test_a_limited_number_of_answers_is_kept(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has many addresses could else fill the memory."""
    monkeypatch.setattr(dnsbl, "_MAX_KEPT", 2)

    async def test() -> None:
        lists = _Lists(server.address)
        for address in (_LISTED, _CLEAN, "11.0.0.4", "11.0.0.5"):
            await lists.of(address)
        assert await lists.of("11.0.0.5") == ""
        assert server.questions("5.0.0.11.bl.example") == 1
        assert await lists.of(_LISTED) == _ZONE
        assert server.questions(_LISTED_NAME) == 2

    asyncio.run(test())


def test_many_bounces_of_one_client_at_once_ask_once(server: DnsServer) -> None:
    """Backscatter comes in floods: each of a hundred sessions would else open a socket."""

    async def test() -> None:
        lists = _Lists(server.address)
        assert await asyncio.gather(*(lists.of(_LISTED) for _ in range(100))) == [_ZONE] * 100
        assert server.questions(_LISTED_NAME) == 1

    asyncio.run(test())


@pytest.mark.parametrize("zone", ["everybody.example", "invented.example", "refuses.example"])
def test_a_list_that_cannot_be_meant_lists_nobody(zone: str, server: DnsServer) -> None:
    """A list that was given up answers yes to all; a server that invents answers, and a refusal, look alike."""

    async def test() -> None:
        assert await _Lists(server.address, [zone]).of(_LISTED) == ""

    asyncio.run(test())


def test_one_list_that_has_the_client_is_enough(server: DnsServer) -> None:
    """Whatever the others say."""

    async def test() -> None:
        lists = _Lists(server.address, ["invented.example", "other.example", _ZONE])
        assert await lists.of(_LISTED) == _ZONE
        assert await lists.of(_CLEAN) == ""

    asyncio.run(test())


def test_a_server_that_says_nothing_lists_nobody_within_the_limit() -> None:
    """A bounce is not to hang on a DNS server that is down: three lists take no longer than one."""

    async def test(address: str) -> None:
        lists = _Lists(address, ["a.example", "b.example", "c.example"])
        begun = asyncio.get_running_loop().time()
        assert await lists.of(_LISTED) == ""
        assert _SECONDS - 0.1 < asyncio.get_running_loop().time() - begun < _SECONDS + _SOON
        await lists.close()

    with misbehaving(silent) as server:
        asyncio.run(test(server.address))


def test_a_list_that_cannot_be_checked_takes_no_longer_than_one_question() -> None:
    """Whether it has everybody is a second question, and the limit is for both."""

    def late_yes(octets: bytes) -> bytes | None:
        if b"\x011\x010\x010\x03127" in octets:
            return None
        Event().wait(1.8)
        return listing(octets)

    async def test(address: str) -> None:
        lists = _Lists(address, seconds=4)
        begun = asyncio.get_running_loop().time()
        assert await lists.of(_LISTED) == ""
        assert asyncio.get_running_loop().time() - begun < 4 + 1.8

    with misbehaving(late_yes) as server:
        asyncio.run(test(server.address))


@pytest.mark.parametrize("behaviour", [silent, failing])
def test_a_list_that_fails_again_and_again_is_left_alone_for_a_while(
    behaviour: Callable[[bytes], bytes | None],
) -> None:
    """Else every bounce from a new server would wait for as long as the list is down."""

    async def test(misbehaviour: Misbehaving) -> None:
        lists = _Lists(misbehaviour.address, seconds=0.2)
        for number in range(3):
            assert await lists.of(f"11.0.0.{number}") == ""
        async with asyncio.timeout(10):
            zone, _ = await lists.given_up.get()
        assert zone == _ZONE
        before = misbehaviour.questions
        assert await lists.of("11.0.0.9") == ""
        assert misbehaviour.questions == before
        lists.time = 31.0
        assert await lists.of("11.0.0.9") == ""
        assert misbehaviour.questions > before
        await lists.close()

    with misbehaving(behaviour) as server:
        asyncio.run(test(server))


# The proxy.


@asynccontextmanager
async def _inbound(
    folder: Path, address: str, *, on_forged: str = "mark", seconds: float = 10.0, **dnsbl_options: object
) -> AsyncIterator[tuple[Client, Recorder, Relay]]:
    (folder / "proxy").mkdir()
    changes = {
        "inbound": {"xclient_from": ["127.0.0.0/8"]},
        "domains": {
            "example.com": {"on_forged": on_forged},
            "other.example": {"on_forged": on_forged, "on_listed": "discard"},
        },
        "dns": {"servers": [address]},
        "dnsbl": {"zones": [_ZONE], "seconds": seconds, **dnsbl_options},
    }
    async with recorded(folder / "proxy", Direction.INBOUND, changes) as parts:
        yield parts


async def _bounce(client: Client, from_address: str, recipient: bytes, sender: bytes = b"") -> bytes:
    """Send a message as a client with an address, and return the reply to it, or to the RCPT that is no yes."""
    shown = f"IPV6:{from_address}" if ":" in from_address else from_address
    assert (await client.say(b"XCLIENT ADDR=" + shown.encode())).startswith(b"220")
    assert (await client.say(b"EHLO mx.remote.example")).startswith(b"250")
    assert (await client.say(b"MAIL FROM:<%b>" % sender)).startswith(b"250")
    reply = await client.say(b"RCPT TO:<%b>" % recipient)
    if reply.startswith(b"250"):
        # Where all that are accepted are to be refused, DATA is the command that hears it.
        reply = await client.say(b"DATA")
    if reply.startswith(b"354"):
        reply = await client.say(b"Subject: failed\r\n\r\n.")
    return reply


def _records(relay: Relay) -> list[tuple[str, str, str]]:
    entries = [json.loads(line) for line in relay.journal.read_text().splitlines()]
    return [(entry["client"], entry["disposition"], entry["reason"]) for entry in entries]


_NO_TAG: Final = "no tag"
_NO_TAG_LISTED: Final = "no tag; bl.example lists the client"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_bounce_without_a_tag_is_kept_back_where_a_list_has_its_client(
    loop: str, tmp_path: Path, server: DnsServer
) -> None:
    """A site that only marks gets rid of the worst, and the journal names the list that it is to thank for it."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (client, recorder, relay):
            for address in (_LISTED, _CLEAN, _LISTED_V6):
                assert (await _bounce(client, address, b"joe@example.com")).startswith(b"250")
            assert _records(relay) == [
                (_LISTED, "quarantine", _NO_TAG_LISTED),
                (_CLEAN, "mark", _NO_TAG),
                (_LISTED_V6, "quarantine", _NO_TAG_LISTED),
            ]
            assert len(recorder.messages) == 1
            assert len(list(relay.quarantine.iterdir())) == 2

    _on(loop, test())


@pytest.mark.parametrize("believed", ["XFORWARD", "PROXY"])
def test_the_client_that_counts_is_the_one_that_the_server_in_front_names(
    believed: str, tmp_path: Path, server: DnsServer
) -> None:
    """A Postfix or a load balancer in front is the client of every connection; no list has it."""

    async def test() -> None:
        (tmp_path / "relay").mkdir()
        networks = {"XFORWARD": "xforward_from", "PROXY": "proxy_protocol_from"}
        changes = {
            "inbound": {networks[believed]: ["127.0.0.0/8"]},
            "domains": {"example.com": {"on_forged": "mark"}},
            "dns": {"servers": [server.address]},
            "dnsbl": {"zones": [_ZONE]},
        }
        recorder = Recorder()
        async with (
            await asyncio.start_server(recorder.serve, "127.0.0.1", 0) as hop,
            running(tmp_path / "relay", Direction.INBOUND, hop.sockets[0].getsockname()[1], changes) as relay,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            client = Client(reader, writer)
            if believed == "PROXY":
                writer.write(f"PROXY TCP4 {_LISTED} 127.0.0.1 40000 25\r\n".encode())
            assert (await client.reply()).startswith(b"220")
            assert (await client.say(b"EHLO front.example.com")).startswith(b"250")
            if believed == "XFORWARD":
                assert (await client.say(b"XFORWARD ADDR=" + _LISTED.encode())).startswith(b"250")
            for line in (b"MAIL FROM:<>", b"RCPT TO:<joe@example.com>", b"DATA", b"Subject: failed\r\n\r\n."):
                assert (await client.say(line))[:1] in b"23"
            client.close()
            assert _records(relay) == [(_LISTED, "quarantine", _NO_TAG_LISTED)]

    asyncio.run(test())


def test_a_domain_may_have_more_done_than_the_others(tmp_path: Path, server: DnsServer) -> None:
    """One customer wants nothing kept."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (client, recorder, relay):
            assert (await _bounce(client, _LISTED, b"joe@other.example")).startswith(b"250")
            assert _records(relay) == [(_LISTED, "discard", _NO_TAG_LISTED)]
            assert recorder.messages == []

    asyncio.run(test())


def test_a_listed_client_s_bounce_can_be_refused(tmp_path: Path, server: DnsServer) -> None:
    """So that the server that sends it learns of it."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address, on_listed="reject") as (client, _, relay):
            assert (await _bounce(client, _LISTED, b"joe@example.com")).startswith(b"550 5.7.1")
            assert _records(relay) == [(_LISTED, "reject", _NO_TAG_LISTED)]

    asyncio.run(test())


def test_a_good_tag_is_good_whoever_brings_it_and_waits_for_no_list(tmp_path: Path) -> None:
    """Big providers are on such lists, and send most of the genuine bounces."""

    async def test(address: str) -> None:
        async with _inbound(tmp_path, address) as (client, recorder, relay):
            async with asyncio.timeout(_SOON):
                assert (await _bounce(client, _LISTED, signed(b"joe@example.com"))).startswith(b"250")
            assert [entry[1] for entry in _records(relay)] == ["rewrite"]
            assert len(recorder.messages) == 1

    with misbehaving(silent) as server:
        asyncio.run(test(server.address))


def test_a_good_tag_from_a_listed_client_passes(tmp_path: Path, server: DnsServer) -> None:
    """The list has answered by then, and still has nothing to say."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (client, recorder, relay):
            await _bounce(client, _LISTED, b"joe@example.com")
            assert (await _bounce(client, _LISTED, signed(b"joe@example.com"))).startswith(b"250")
            assert [entry[1] for entry in _records(relay)] == ["quarantine", "rewrite"]
            assert len(recorder.messages) == 1

    asyncio.run(test())


@pytest.mark.parametrize("sender", [b"ann@peer.example", b"postmaster@peer.example"])
def test_no_list_is_asked_about_mail_with_a_sender(sender: bytes, tmp_path: Path, server: DnsServer) -> None:
    """Servers that send backscatter send ordinary mail too, which must not be lost, nor be told of."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (client, recorder, _):
            assert (await _bounce(client, _LISTED, b"joe@example.com", sender)).startswith(b"250")
            assert len(recorder.messages) == 1
        assert server.questions() == 0

    asyncio.run(test())


def test_lists_are_asked_about_postmaster_where_bounces_with_a_sender_are_judged(
    tmp_path: Path, server: DnsServer
) -> None:
    """As Backscatterer.org has it, of no other sender; and only for the domain that wants it."""

    async def test() -> None:
        (tmp_path / "proxy").mkdir()
        changes = {
            "inbound": {"xclient_from": ["127.0.0.0/8"]},
            "domains": {"example.com": {"on_bounce_with_sender": "mark"}, "other.example": {}},
            "dns": {"servers": [server.address]},
            "dnsbl": {"zones": [_ZONE]},
        }
        async with recorded(tmp_path / "proxy", Direction.INBOUND, changes) as (client, recorder, relay):
            for sender in (b"ann@peer.example", b"mailer-daemon@peer.example"):
                assert (await _bounce(client, _LISTED, b"joe@example.com", sender)).startswith(b"250")
            assert server.questions() == 0
            for recipient in (b"joe@example.com", b"joe@other.example", signed(b"joe@example.com")):
                assert (await _bounce(client, _LISTED, recipient, b"Postmaster@peer.example")).startswith(b"250")
            assert _records(relay) == [
                (_LISTED, "mark", "sender is a mail system; no tag"),
                (_LISTED, "quarantine", "sender is a mail system; no tag; bl.example lists the client"),
                (_LISTED, "rewrite", "sender is a mail system; tag good"),
            ]
            assert len(recorder.messages) == 4
        assert server.questions(_LISTED_NAME) == 1

    asyncio.run(test())


def test_no_list_is_asked_about_a_client_of_the_site_s_own(tmp_path: Path, server: DnsServer) -> None:
    """Its address is nobody's business."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (client, recorder, _):
            assert (await _bounce(client, "10.0.0.2", b"joe@example.com")).startswith(b"250")
            assert len(recorder.messages) == 1
        assert server.questions() == 0

    asyncio.run(test())


def test_a_bounce_that_gets_the_worst_anyway_waits_for_no_list(tmp_path: Path) -> None:
    """The answer could change nothing."""

    async def test(address: str) -> None:
        async with _inbound(tmp_path, address, on_forged="discard") as (client, _, relay):
            async with asyncio.timeout(_SOON):
                assert (await _bounce(client, _CLEAN, b"joe@example.com")).startswith(b"250")
            assert _records(relay) == [(_CLEAN, "discard", _NO_TAG)]

    with misbehaving(silent) as server:
        asyncio.run(test(server.address))


def test_a_list_that_does_not_answer_delays_a_bounce_no_longer_than_the_settings_say(tmp_path: Path) -> None:
    """And then nobody is listed: the bounce gets what it would get without lists. Others are served meanwhile."""

    async def test(address: str) -> None:
        async with _inbound(tmp_path, address, seconds=0.5) as (client, recorder, relay):
            loop = asyncio.get_running_loop()
            begun = loop.time()
            assert (await _bounce(client, _CLEAN, b"joe@example.com")).startswith(b"250")
            assert 0.4 < loop.time() - begun < 0.5 + _SOON
            assert _records(relay) == [(_CLEAN, "mark", _NO_TAG)]
            assert len(recorder.messages) == 1

    with misbehaving(silent) as server:
        asyncio.run(test(server.address))


async def _greeted(relay: Relay) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
    assert (await client.reply()).startswith(b"220")
    return client


@pytest.mark.parametrize("loop", LOOPS)
def test_many_sessions_at_once_ask_once_and_hear_the_same(loop: str, tmp_path: Path, server: DnsServer) -> None:
    """A server that sends backscatter opens many connections."""

    async def test() -> None:
        async with _inbound(tmp_path, server.address) as (_, recorder, relay):
            clients = [await _greeted(relay) for _ in range(40)]
            await asyncio.gather(*(_bounce(client, _LISTED, b"joe@example.com") for client in clients))
            for client in clients:
                client.close()
            assert _records(relay) == [(_LISTED, "quarantine", _NO_TAG_LISTED)] * 40
            assert recorder.messages == []
        assert server.questions(_LISTED_NAME) == 1

    _on(loop, test())


def test_whoever_waits_for_a_list_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    """Ordinary mail and genuine bounces go on while a DNS server is down, in other sessions and to other recipients."""

    async def test(misbehaviour: Misbehaving) -> None:
        async with _inbound(tmp_path, misbehaviour.address) as (client, recorder, relay):
            waiting = asyncio.create_task(_bounce(client, _CLEAN, b"joe@example.com"))
            assert await asyncio.to_thread(misbehaviour.asked.wait, 10)
            other = await _greeted(relay)
            async with asyncio.timeout(_SOON):
                for recipient, sender in ((signed(b"joe@example.com"), b""), (b"joe@example.com", b"ann@peer.example")):
                    assert (await _bounce(other, _LISTED, recipient, sender)).startswith(b"250")
            assert len(recorder.messages) == 2
            assert not waiting.done()
            other.close()
            waiting.cancel()

    with misbehaving(silent) as server:
        asyncio.run(test(server))


def test_the_question_is_asked_at_mail_before_anybody_is_named(tmp_path: Path) -> None:
    """While the client names the recipients the answer comes, and costs no time."""

    async def test(server: Misbehaving) -> None:
        async with _inbound(tmp_path, server.address, seconds=0.5) as (client, _, _relay):
            await client.say(b"XCLIENT ADDR=" + _CLEAN.encode())
            await client.say(b"EHLO mx.remote.example")
            assert server.questions == 0
            assert (await client.say(b"MAIL FROM:<>")).startswith(b"250")
            assert await asyncio.to_thread(server.asked.wait, 10)

    with misbehaving(silent) as server:
        asyncio.run(test(server))


def test_the_service_drains_while_a_question_is_open(tmp_path: Path) -> None:
    """A stop is not to wait for the DNS, nor to leave a task behind that complains."""

    async def test(server: Misbehaving) -> None:
        async with _inbound(tmp_path, server.address) as (client, _, relay):
            await client.say(b"XCLIENT ADDR=" + _CLEAN.encode())
            await client.say(b"EHLO mx.remote.example")
            await client.say(b"MAIL FROM:<>")
            client.close()
            async with asyncio.timeout(2 + _SOON):
                await relay.drain()
            assert relay.crashes == []
            assert not [task for task in asyncio.all_tasks() if "Blocklists" in repr(task)]

    with misbehaving(silent) as server:
        asyncio.run(test(server))


def _disposition(service: ServiceProcess, address: str) -> str:
    """Return what becomes of a bounce without a tag from a client with an address."""
    with SmtpClient(service.inbound) as client:
        assert client.say(b"XCLIENT ADDR=" + address.encode()).code == 220
        assert client.say(b"EHLO mx.remote.example").code == 250
        assert client.mail(b"", [b"joe@example.com"], b"Subject: failed\r\n\r\n").code == 250
    return str(service.journal()[-1]["disposition"])


@pytest.mark.parametrize("workers", [1, 2])
def test_lists_can_be_switched_on_and_off_while_the_service_runs(
    workers: int, tmp_path: Path, server: DnsServer
) -> None:
    """As any setting, with SIGHUP, in every process; a reload that changes nothing keeps what was answered."""
    believing = 'xclient_from = ["127.0.0.0/8"]\n'
    common = f"[smtp]\nworkers = {workers}\n"
    lists = f'{common}[dns]\nservers = ["{server.address}"]\n[dnsbl]\nzones = ["{_ZONE}"]\n'
    folder = tmp_path / "service"
    folder.mkdir()
    with (
        RecordingNextHop() as hop,
        ServiceProcess(folder, hop.address, common, on_forged="mark", options=believing) as service,
    ):

        def reload(settings: str) -> None:
            at = len(service.log)
            service.configure(settings, on_forged="mark", options=believing)
            service.reload()
            for _ in range(workers):
                at += service.wait_for_log(r"\breloaded\b.*$", after=at).end()

        assert _disposition(service, _LISTED) == "mark"
        reload(lists)
        for _ in range(4 * workers):
            assert _disposition(service, _LISTED) == "quarantine"
        assert _disposition(service, _CLEAN) == "mark"
        asked = server.questions(_LISTED_NAME)
        assert 1 <= asked <= workers
        reload(lists)
        for _ in range(4 * workers):
            assert _disposition(service, _LISTED) == "quarantine"
        assert server.questions(_LISTED_NAME) <= workers
        reload(common)
        for _ in range(4 * workers):
            assert _disposition(service, _LISTED) == "mark"


def test_the_name_of_the_control_is_that_of_rfc_5782() -> None:
    """The records above would else test nothing."""
    assert query_name(dnsbl._NOBODY, _ZONE) == _CONTROL
