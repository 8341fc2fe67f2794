"""Clients that are known by their certificate: who is let in, for which domains, from which tenant."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.certificates import Authority
from tests.support.next_hop import RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import SERVER_NAME, Heard, SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TENANT: Final = "01234567-89ab-cdef-0123-456789abcdef"
_OTHER: Final = "11111111-2222-3333-4444-555555555555"
_FIELD: Final = b"X-MS-Exchange-CrossTenant-Id: "
_HERS: Final = _FIELD + _TENANT.encode() + b"\r\n"
_STRANGERS: Final = _FIELD + _OTHER.encode() + b"\r\n"
_LONG: Final = b"".join(b"X-Padding-%05d: %b\r\n" % (number, b"p" * 46) for number in range(3200))  # 200 KiB

_TABLES: Final = f"""
[domains."bücher.example"]

[[outbound.client_certificates]]
name = "*.relay.example"

[[outbound.client_certificates]]
name = "supplier.example"
domains = ["example.com", "bücher.example"]

[[outbound.client_certificates]]
name = "mail.protection.example"
tenant = "{_TENANT}"
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that the proxy trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for all tests."""
    with RecordingNextHop() as hop:
        yield hop


def closed(folder: Path, next_hop: RecordingNextHop, authority: Authority, tables: str, code: str) -> ServiceProcess:
    """Return a service that takes mail from no network."""
    certificate, key = authority.issue(SERVER_NAME)
    options = f'tls_certificate = "{certificate}"\ntls_key = "{key}"\ntls_client_ca = "{authority.ca}"\n'
    service = ServiceProcess(folder, next_hop.address, tables, options=options, code=code)
    text = service.config.read_text(encoding="utf-8")
    service.config.write_text(
        text.replace("[outbound]\n", '[outbound]\nclients = ["192.0.2.0/24"]\n'), encoding="utf-8"
    )
    return service


@pytest.fixture(scope="module", params=list(LOOPS))
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    next_hop: RecordingNextHop,
    authority: Authority,
) -> Iterator[ServiceProcess]:
    """A service that takes mail from those who hold certificates, and from a network that nobody here is in."""
    with closed(tmp_path_factory.mktemp("service"), next_hop, authority, _TABLES, LOOPS[request.param]) as running:
        yield running


def known_as(service: ServiceProcess, trusted: Authority, shown: tuple[Path, Path] | None) -> SmtpClient:
    """Return a client in TLS that has shown a certificate, past its EHLO."""
    context = ssl.create_default_context(cafile=str(trusted.ca))
    if shown is not None:
        context.load_cert_chain(*shown)
    client = SmtpClient(service.outbound)
    client.start_tls(context)
    assert client.say(b"EHLO out.example").code == 250
    return client


def sent(client: SmtpClient, sender: bytes = b"joe@example.com", content: bytes = b"Subject: x\r\n\r\nx\r\n") -> Heard:
    """Send a message, and return what became of it."""
    return client.mail(sender, [b"ann@peer.example"], content)


def test_a_client_with_the_right_certificate_may_send_from_anywhere(
    service: ServiceProcess, next_hop: RecordingNextHop, authority: Authority
) -> None:
    """Its mail is signed as if it came from a network of ours."""
    next_hop.forget()
    with known_as(service, authority, authority.issue("a.relay.example")) as client:
        assert [sent(client).code for _ in range(2)] == [250, 250]
    assert next_hop.messages[-1].mail.startswith(b"<prvs=0")


@pytest.mark.parametrize(
    ("names", "shown"),
    [((), "none"), (("relay.example",), "relay.example"), (("x.y.relay.example", "z"), "x.y.relay.example z")],
)
def test_a_client_without_a_right_certificate_is_refused_at_mail(
    service: ServiceProcess, authority: Authority, names: tuple[str, ...], shown: str
) -> None:
    """Not before, since it could not show one before; the log says which names it showed."""
    at = len(service.log)
    with known_as(service, authority, authority.issue(*names) if names else None) as client:
        assert sent(client).text == b"554 5.7.1 Access denied\r\n"
        assert client.say(b"RCPT TO:<ann@peer.example>").code == 503
    service.wait_for_log(
        rf"WARNING: client not allowed: direction=outbound, client=127\.0\.0\.1, certificate={shown}$", after=at
    )


def test_a_client_in_clear_is_refused_at_mail(service: ServiceProcess) -> None:
    """It is asked for STARTTLS by being told of it, and cannot be known before."""
    with SmtpClient(service.outbound) as client:
        assert sent(client).text == b"554 5.7.1 Access denied\r\n"


def test_where_no_certificate_counts_a_stranger_is_sent_away_at_once(
    tmp_path: Path, next_hop: RecordingNextHop, authority: Authority
) -> None:
    """Nothing it could do would let it in."""
    with (
        closed(tmp_path, next_hop, authority, "", LOOPS["asyncio"]) as service,
        SmtpClient(service.outbound, greet=False) as client,
    ):
        assert client.reply().text == b"554 5.7.1 Access denied\r\n"


def test_a_certificate_of_another_authority_ends_the_handshake(
    service: ServiceProcess, authority: Authority, stranger: Authority
) -> None:
    """Anybody can make one with any name; the log says why nothing came of it."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(*stranger.issue("a.relay.example"))
    at = len(service.log)
    with SmtpClient(service.outbound) as client:
        # In TLS 1.3 the client hears of it with the first reply that does not come.
        try:
            client.start_tls(context)
            assert client.say(b"EHLO out.example").code == 0
        except (ssl.SSLError, ConnectionError):
            pass
    service.wait_for_log(r"no TLS with a client: client=127\.0\.0\.1, cause=.*certificate verify failed", after=at)


@pytest.mark.parametrize("domain", ["example.com", "EXAMPLE.com", "xn--bcher-kva.example"])
def test_a_holder_sends_for_his_domains(service: ServiceProcess, authority: Authority, domain: str) -> None:
    """In whichever spelling, an internationalised one in both; and bounces, which are nobody's domain."""
    with known_as(service, authority, authority.issue("supplier.example")) as client:
        assert sent(client, b"joe@" + domain.encode()).code == 250
        assert sent(client, b"").code == 250


@pytest.mark.parametrize("domain", ["example.org", "sub.example.com", "notexample.com"])
def test_a_holder_does_not_send_for_other_domains(service: ServiceProcess, authority: Authority, domain: str) -> None:
    """The supplier's server is not to send in the name of the chief; the next message of the session may be right."""
    at = len(service.log)
    with known_as(service, authority, authority.issue("supplier.example")) as client:
        assert sent(client, b"joe@" + domain.encode()).text == b"550 5.7.1 Sender not allowed for this client\r\n"
        assert sent(client).code == 250
    service.wait_for_log(r"sender not allowed for the certificate: .*certificate=supplier\.example$", after=at)


@pytest.mark.parametrize(
    "header",
    [
        _HERS,
        _HERS.replace(_TENANT.encode(), _TENANT.upper().encode()),
        _HERS.lower(),
        _FIELD.rstrip() + b"\r\n\t" + _TENANT.encode() + b"\r\n",
        _HERS + _HERS,
        _LONG + _HERS,
        _HERS + _LONG,
    ],
    ids=["field", "value in capitals", "name in small letters", "folded", "twice", "behind 200 KiB", "before 200 KiB"],
)
@pytest.mark.parametrize("sender", [b"joe@example.com", b""])
def test_mail_of_the_right_tenant_passes(
    service: ServiceProcess, next_hop: RecordingNextHop, authority: Authority, header: bytes, sender: bytes
) -> None:
    """However the field is written and wherever it stands in the header."""
    next_hop.forget()
    content = b"Subject: x\r\n" + header + b"\r\nx\r\n"
    with known_as(service, authority, authority.issue("mail.protection.example")) as client:
        assert sent(client, sender, content).code == 250
    assert [message.content for message in next_hop.messages] == [content]


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\r\n\r\nx\r\n",
        b"\r\n" + _HERS,
        b"",
        _STRANGERS + b"\r\n",
        _HERS + _STRANGERS + b"\r\n",
        _STRANGERS + _LONG + _HERS + b"\r\n",
        _FIELD + b"\r\n\r\n",
        _HERS.replace(b"\r\n", b" x\r\n") + b"\r\n",
        _HERS + _LONG + _LONG + _STRANGERS + b"\r\n",
    ],
    ids=[
        "none",
        "in the body",
        "empty message",
        "another",
        "two",
        "two with 200 KiB between",
        "empty",
        "more than a tenant",
        "another behind all that is looked at",
    ],
)
@pytest.mark.parametrize("sender", [b"joe@example.com", b""])
def test_mail_of_another_tenant_is_refused_and_gets_no_dot(
    service: ServiceProcess, next_hop: RecordingNextHop, authority: Authority, content: bytes, sender: bytes
) -> None:
    """All tenants come with one certificate: a stranger's mail would be signed in our name."""
    next_hop.forget()
    at = len(service.log)
    records = len(service.journal()) if service.journal_path.exists() else 0
    with known_as(service, authority, authority.issue("mail.protection.example")) as client:
        assert sent(client, sender, content).text == b"550 5.7.1 Message refused\r\n"
        assert sent(client, sender, _HERS + b"\r\nx\r\n").code == 250
    until(lambda: len(next_hop.messages) == 1, "the message that was right")
    assert sum(connection.dots for connection in next_hop.connections) == 1
    service.wait_for_log(r"cause=<not from the tenant that the certificate is good for>", after=at)
    assert [record["reply"][:3] for record in service.journal()[records:]] == ["550", "250"]
