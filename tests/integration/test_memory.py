"""Memory does not grow with the message, nor with a next hop that takes its time."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.next_hop import RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MEBIBYTE: Final = 1 << 20
_MESSAGE_OCTETS: Final = 100 * _MEBIBYTE
_MAX_GROWTH_OCTETS: Final = 16 * _MEBIBYTE
_MAX_OCTETS: Final = 80 * _MEBIBYTE
_LINE: Final = b"..%07d " + b"z" * 52 + b"\r\n"  # 64 octets, begins with a stuffed dot
_PIECE_LINES: Final = 4096
_KERNEL_OCTETS: Final = 32 * _MEBIBYTE
"""What the socket buffers of two connections on the loopback may hold at most, with a wide margin."""


def pieces() -> Iterator[bytes]:
    """Yield 100 MiB of lines, each of its own, in pieces of 256 KiB."""
    for number in range(_MESSAGE_OCTETS // 64 // _PIECE_LINES):
        yield b"".join(_LINE % (number * _PIECE_LINES + line) for line in range(_PIECE_LINES))


@contextmanager
def message_begun(service: ServiceProcess, proxy: str) -> Iterator[SmtpClient]:
    """A client that may send its message now."""
    bounce = proxy == "inbound"
    with SmtpClient(service.address(proxy)) as client:
        # One small message first: what is loaded once is no growth.
        sender = b"" if bounce else b"joe@example.com"
        recipient = service.tagged(b"joe@example.com") if bounce else b"ann@peer.example"
        assert client.mail(sender, [recipient], b"x\r\n").code == 250
        assert client.say(b"MAIL FROM:<" + sender + b">").code == 250
        assert client.say(b"RCPT TO:<" + recipient + b">").code == 250
        assert client.say(b"DATA").code == 354
        yield client


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize(("proxy", "on_forged"), [("outbound", "discard"), ("inbound", "discard"), ("inbound", "mark")])
def test_a_message_of_100_mebibytes_passes_octet_for_octet_in_little_memory(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None], proxy: str, on_forged: str, loop: str
) -> None:
    """It streams: the first octets are at the next hop before the last have been sent, and none of them stays."""
    sent = hashlib.sha256()
    with (
        RecordingNextHop(keep=False) as next_hop,
        ServiceProcess(tmp_path, next_hop.address, on_forged=on_forged, code=LOOPS[loop]) as service,
        message_begun(service, proxy) as client,
    ):
        marked = on_forged == "mark" and proxy == "inbound"
        if marked:
            sent.update(b"X-Batv-Status: valid\r\n")
        next_hop.content.clear()
        before = highest = service.memory()
        for number, piece in enumerate(pieces()):
            client.send(piece)
            sent.update(piece)
            if number == 32:  # 8 MiB: more than a relay may hold back
                assert next_hop.content.wait(30), "the first octets are there before the last have been sent"
            highest = max(highest, service.memory())
        assert client.say(b".").code == 250
        highest = max(highest, service.memory())
        message = next_hop.messages[-1]
    assert message.octets == _MESSAGE_OCTETS + (22 if marked else 0)
    assert message.digest == sent.hexdigest()
    record_testsuite_property(f"{loop}, {proxy}: octets before", before)
    record_testsuite_property(f"{loop}, {proxy}: octets at most", highest)
    assert highest - before < _MAX_GROWTH_OCTETS
    assert highest < _MAX_OCTETS


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_a_next_hop_that_takes_its_time_slows_the_client_down(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None], proxy: str, loop: str
) -> None:
    """What the next hop does not take, the proxy does not take either."""
    with (
        RecordingNextHop(keep=False) as next_hop,
        ServiceProcess(tmp_path, next_hop.address, code=LOOPS[loop]) as service,
        message_begun(service, proxy) as client,
    ):
        next_hop.hold_reading()
        before = service.memory()
        taken = sent_until_full(client)
        assert taken < _KERNEL_OCTETS
        held = service.memory()
        next_hop.go_on()
        client.socket.settimeout(60)
        assert client.say(b"\r\n.").code == 250
        assert next_hop.messages[-1].octets == taken + 2
        highest = max(held, service.memory())
    record_testsuite_property(f"{loop}, {proxy}: octets more with a slow next hop", highest - before)
    assert highest - before < _MAX_GROWTH_OCTETS


def sent_until_full(client: SmtpClient) -> int:
    """Send until nothing more is taken for a second; return the number of octets."""
    client.socket.settimeout(1)
    sent = 0
    try:
        while sent < _MESSAGE_OCTETS:
            sent += client.socket.send(b"q" * 65_536)
    except TimeoutError:
        pass
    return sent


def test_a_hundred_clients_at_once_cost_little_each(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """A hundred messages of a mebibyte, all under way at once, with a next hop that takes none of them."""
    count, octets = 100, _MEBIBYTE
    content = b"q" * (octets - 2) + b"\r\n"
    with (
        RecordingNextHop(keep=False) as next_hop,
        ServiceProcess(tmp_path, next_hop.address) as service,
        ThreadPoolExecutor(count) as pool,
    ):

        def send(_: int) -> int:
            with SmtpClient(service.outbound) as client:
                return client.mail(b"joe@example.com", [b"ann@peer.example"], content).code

        assert send(0) == 250
        before = service.memory()
        next_hop.hold_answer()
        waiting = [pool.submit(send, number) for number in range(count)]
        highest = before
        while len(next_hop.messages) < count + 1:
            next_hop.dots.clear()
            highest = max(highest, service.memory())
            if len(next_hop.messages) < count + 1:
                assert next_hop.dots.wait(60)
        highest = max(highest, service.memory())
        next_hop.go_on()
        assert {each.result(60) for each in waiting} == {250}
    record_testsuite_property("octets more with 100 clients", highest - before)
    assert highest - before < count * octets // 2
