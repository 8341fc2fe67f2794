"""Bounces that real mail systems have written pass the inbound proxy untouched, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.next_hop import RecordingNextHop
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.realcorpus

_BOUNCES: Final = 135


def on_the_wire(octets: bytes) -> bytes:
    """Return a message as SMTP carries it: every line ends with CRLF, dots at line starts are stuffed."""
    lines = octets.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\0", b" ").removesuffix(b"\n").split(b"\n")
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)


@pytest.fixture(scope="module")
def bounces(real_corpora: Path) -> list[bytes]:
    """All of them."""
    found = [on_the_wire(path.read_bytes()) for path in sorted(real_corpora.rglob("*.eml"))]
    assert len(found) >= _BOUNCES
    return found


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that discards what is forged."""
    next_hop.forget()
    with ServiceProcess(tmp_path, next_hop.address) as running:
        yield running


def test_each_real_bounce_to_a_tagged_address_arrives_octet_for_octet(
    service: ServiceProcess, next_hop: RecordingNextHop, bounces: list[bytes]
) -> None:
    """Broken MIME, eight-bit headers, lines beyond 998 octets: not ours to mend."""
    with SmtpClient(service.inbound) as client:
        for bounce in bounces:
            assert client.mail(b"", [service.tagged(b"joe@example.com")], bounce).text == b"250 2.0.0 Ok\r\n"
    assert [message.content for message in next_hop.messages] == bounces
    assert {message.recipients for message in next_hop.messages} == {(b"<joe@example.com>",)}
    assert [(record["verdict"], record["size"]) for record in service.journal()] == [
        ("valid", len(bounce)) for bounce in bounces
    ]


def test_each_real_bounce_to_the_plain_address_is_discarded_on_the_record(
    service: ServiceProcess, next_hop: RecordingNextHop, bounces: list[bytes]
) -> None:
    """The next hop is asked about the recipient, and hears nothing of the message."""
    with SmtpClient(service.inbound) as client:
        for bounce in bounces:
            assert client.mail(b"", [b"joe@example.com"], bounce).text == b"250 2.0.0 Ok\r\n"
    assert next_hop.messages == []
    assert {command[:4] for command in next_hop.commands} == {b"MAIL", b"RCPT", b"RSET"}
    assert sum(connection.content_octets for connection in next_hop.connections) == 0
    assert [(record["verdict"], record["disposition"], record["size"]) for record in service.journal()] == [
        ("untagged", "discard", len(bounce)) for bounce in bounces
    ]
