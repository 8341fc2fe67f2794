"""The proxies make no mail: whatever they refuse, discard or cannot deliver, nobody is told but who is connected."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.next_hop import CLOSE, Answer, RecordingNextHop, Stage
from tests.support.service import SERVE, ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.tracing import TRACEABLE, traced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_JOE: Final = b"joe@example.com"
_ANN: Final = b"ann@peer.example"
_LONG: Final = b"x" * 60 + b"@example.com"
_WANTS_TO_KNOW: Final = b"Return-Receipt-To: <ann@peer.example>\r\nDisposition-Notification-To: <ann@peer.example>\r\n"

_REFUSALS: Final = {
    "": None,
    "unknown-user": (Stage.FIRST_RCPT, Answer(b"550 5.1.1 no such user\r\n")),
    "mail-refused": (Stage.MAIL, Answer(b"554 5.7.1 no\r\n")),
    "content-refused": (Stage.DOT, Answer(b"554 5.6.0 no\r\n")),
    "put-off": (Stage.DOT, Answer(b"451 4.3.0 later\r\n")),
    "gone-after-the-dot": (Stage.DOT, CLOSE),
}
"""What the next hop does to each message, by a name."""


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service with a domain for each disposition."""
    domains = "".join(
        f'[domains."{word}.example"]\non_forged = "{word}"\n' for word in ("quarantine", "reject", "mark", "pass")
    )
    settings = f'on_bounce_with_sender = "discard"\n{domains}[tags]\non_too_long = "refuse"\n'
    with ServiceProcess(tmp_path, next_hop.address, settings, code=TRACEABLE + SERVE) as running:
        yield running


def bounces(service: ServiceProcess) -> Iterator[tuple[bytes, bytes]]:
    """Yield what comes in: sender and recipient."""
    tagged = service.tagged(_JOE)
    yield b"", tagged
    yield b"", tagged.replace(b"=joe", b"=jim")
    yield b"", b"prvs=9" + tagged[6:]
    for domain in (b"example.com", b"quarantine.example", b"reject.example", b"mark.example", b"pass.example"):
        yield b"", b"joe@" + domain
        yield b"MAILER-DAEMON@peer.example", b"joe@" + domain
        yield _ANN, b"joe@" + domain
    yield b"", b"joe@elsewhere.example"
    yield b"", b"postmaster@example.com"


def send(address: tuple[str, int], sender: bytes, recipient: bytes, number: int) -> None:
    """Send a message whose sender asks to be told of everything; half of them with a bare line feed."""
    bare = b"\n.\n" if number % 2 else b""
    with SmtpClient(address) as client:
        client.say(b"MAIL FROM:<%b> RET=FULL ENVID=QQ%d" % (sender, number))
        client.say(b"RCPT TO:<%b> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;%b" % (recipient, recipient))
        if client.say(b"DATA").code == 354:
            client.say(b"Message-ID: <%d@peer.example>\r\n%b\r\ntext%b\r\n." % (number, _WANTS_TO_KNOW, bare))
        client.say(b"QUIT")


@pytest.mark.strace
@pytest.mark.parametrize("refusal", _REFUSALS)
def test_whatever_becomes_of_a_message_no_other_is_made(
    service: ServiceProcess, next_hop: RecordingNextHop, tmp_path: Path, refusal: str
) -> None:
    """A proxy that told senders what became of their mail would send backscatter itself."""
    coming = [(service.inbound, sender, recipient) for sender, recipient in bounces(service)]
    coming += [(service.outbound, sender, _ANN) for sender in (_JOE, _LONG, b"", b"ann@elsewhere.example")]
    fails = _REFUSALS[refusal]
    if fails is not None:
        next_hop.fail(*fails)
    calls = tmp_path / "calls"
    with traced(service.pid, "connect", calls):
        for number, (address, sender, recipient) in enumerate(coming):
            send(address, sender, recipient, number)
        service.stop()
        assert service.wait() == 0
    # Each message at the next hop is one that came, and none is there twice.
    numbers = [re.search(rb"^Message-ID: <(\d+)@", each.content, re.MULTILINE) for each in next_hop.messages]
    assert None not in numbers
    came = [int(each[1]) for each in numbers if each is not None]
    assert len(came) == len(set(came))
    for number, message in zip(came, next_hop.messages, strict=True):
        _, sender, recipient = coming[number]
        assert message.mail.startswith((b"<%b>" % sender, b"<prvs="))
        assert [re.sub(rb"prvs=\d{4}[0-9a-f]{6}=", b"", recipient)] == [
            each[1 : each.index(b">")] for each in message.recipients
        ]
    assert bool(came) is (refusal in {"", "gone-after-the-dot"})
    # And nothing went by another way.
    connected = re.findall(r"connect\(\d+, \{sa_family=(\w+), (?:sin_port=htons\((\d+)\)|.*?)", calls.read_text())
    assert {port for family, port in connected if family.startswith("AF_INET")} <= {str(next_hop.port)}
    assert connected or not next_hop.connections
