"""TLS as clients and administrators meet it: mail stays as it is, nothing said in clear counts in it, nothing leaks."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.support.certificates import Authority, serving
from tests.support.leaving import HALF_A_MESSAGE, begin_message, half_closes, resets
from tests.support.next_hop import RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import SERVER_NAME, SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_OFFERS: Final = (b"SIZE 20000000", b"8BITMIME", b"SMTPUTF8", b"DSN")
_MANY: Final = 100
_BUFFER_OCTETS: Final = 1 << 18
"""What asyncio and uvloop set aside for a connection in TLS; a leak would keep at least that."""

_BODIES: Final = {
    "empty": b"",
    "8-bit": b"Subject: caf\xc3\xa9\r\n\r\n" + bytes(range(1, 10)) + b"\x0b\x0c" + bytes(range(14, 256)) + b"\r\n",
    "dot-stuffed": b"..\r\n..x\r\n\r\n..\r\n...\r\n",
    "line of 100 KB": b"Subject: long\r\n\r\n" + b"z" * 100_000 + b"\r\n",
    "header of 1 MiB": b"".join(b"X-%06d: %b\r\n" % (number, b"v" * 54) for number in range(16_384)) + b"\r\nx\r\n",
    "5 MiB": b"Subject: big\r\n\r\n" + b"".join(b"%07d " % number + b"q" * 54 + b"\r\n" for number in range(81_920)),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that everybody here trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    """What a client does TLS with that verifies the server."""
    return ssl.create_default_context(cafile=str(authority.ca))


def listening(authority: Authority) -> str:
    """Return options of a proxy that does TLS."""
    certificate, key = authority.issue(SERVER_NAME)
    return f'tls_certificate = "{certificate}"\ntls_key = "{key}"\nlisten_tls = ["127.0.0.1:0"]\n'


# Mail.


@pytest.fixture(scope="module", params=["clear", "STARTTLS", "implicit"])
def way(request: pytest.FixtureRequest) -> str:
    """How both legs are encrypted."""
    return str(request.param)


@pytest.fixture(scope="module")
def encrypting_hop(authority: Authority, way: str) -> Iterator[RecordingNextHop]:
    """A next hop that is spoken to that way, and takes whatever a proxy carries."""
    hop = RecordingNextHop(offers=_OFFERS)
    hop.tls = serving(authority) if way != "clear" else None
    hop.tls_first = way == "implicit"
    with hop:
        yield hop


@pytest.fixture(scope="module", params=list(LOOPS))
def relaying(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    encrypting_hop: RecordingNextHop,
    way: str,
) -> Iterator[ServiceProcess]:
    """A service that speaks to its next hop that way."""
    mode = {"clear": "off", "STARTTLS": "required", "implicit": "implicit"}[way]
    options = listening(authority) + f'next_hop_tls = "{mode}"\n'
    if way != "clear":
        options += f'next_hop_tls_ca = "{authority.ca}"\n'
    folder = tmp_path_factory.mktemp("relaying")
    with ServiceProcess(folder, encrypting_hop.address, options=options, code=LOOPS[request.param]) as service:
        yield service


def coming(service: ServiceProcess, proxy: str, way: str, trusting: ssl.SSLContext) -> SmtpClient:
    """Return a client that has come that way, past its EHLO."""
    if way == "implicit":
        return SmtpClient(service.address(proxy, tls=True), tls=trusting)
    client = SmtpClient(service.address(proxy))
    if way == "STARTTLS":
        client.start_tls(trusting)
        assert client.say(b"EHLO client.example").code == 250
    return client


@pytest.mark.parametrize("body", _BODIES)
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_a_message_is_the_same_at_both_ends_whichever_way_it_goes(  # noqa: PLR0913, PLR0917 -- both ends, and the case
    relaying: ServiceProcess,
    encrypting_hop: RecordingNextHop,
    trusting: ssl.SSLContext,
    way: str,
    proxy: str,
    body: str,
) -> None:
    """Every parameter, in order and in case, and every octet of the content."""
    encrypting_hop.forget()
    content = _BODIES[body]
    mail = b" SIZE=%d BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb" % len(content)
    rcpt = b" NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Joe+2Bx@example.com"
    tagged = relaying.tagged(b"joe@example.com")
    given, gone = (b"joe@example.com", tagged) if proxy == "outbound" else (tagged, b"joe@example.com")
    with coming(relaying, proxy, way, trusting) as client:
        if proxy == "outbound":
            said = [b"MAIL FROM:<%b>%b" % (given, mail), b"RCPT TO:<ann@peer.example>%b" % rcpt]
            heard = (b"<%b>%b" % (gone, mail), (b"<ann@peer.example>%b" % rcpt,))
        else:
            said = [b"MAIL FROM:<>%b" % mail, b"RCPT TO:<%b>%b" % (given, rcpt)]
            heard = (b"<>%b" % mail, (b"<%b>%b" % (gone, rcpt),))
        assert [client.say(line).code for line in (*said, b"DATA")] == [250, 250, 354]
        assert client.say(content + b".").code == 250
    message = encrypting_hop.messages[-1]
    assert (message.mail, message.recipients) == heard
    assert message.content == content
    connection = encrypting_hop.connections[-1]
    assert connection.tls == ("" if way == "clear" else "TLSv1.3")
    expected = [b"EHLO", b"STARTTLS"] if way == "STARTTLS" else []
    assert [command.split()[0] for command in connection.commands[: connection.in_clear]] == expected


# Clients.


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for all tests of clients."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture(scope="module", params=list(LOOPS))
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    next_hop: RecordingNextHop,
) -> Iterator[ServiceProcess]:
    """A service that does TLS with clients and is soon out of patience."""
    folder = tmp_path_factory.mktemp("service")
    patience = "[smtp]\ncommand_seconds = 2\n"
    with ServiceProcess(
        folder, next_hop.address, patience, options=listening(authority), code=LOOPS[request.param]
    ) as running:
        yield running


def offers(client: SmtpClient) -> bytes:
    """Return the reply to EHLO."""
    heard = client.say(b"EHLO client.example")
    assert heard.code == 250
    return heard.text


def test_starttls_is_offered_until_it_was_said_and_only_with_a_certificate(
    service: ServiceProcess, next_hop: RecordingNextHop, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    """What is offered is tried, and a client that must not find it would give up."""
    with SmtpClient(service.outbound) as client:
        assert b"250-STARTTLS\r\n" in offers(client)
        client.start_tls(trusting)
        assert b"STARTTLS" not in offers(client)
        assert client.say(b"STARTTLS").text.startswith(b"503 5.5.1 ")
    with SmtpClient(service.address("outbound", tls=True), tls=trusting) as client:
        assert b"STARTTLS" not in offers(client)
    with ServiceProcess(tmp_path, next_hop.address) as plain, SmtpClient(plain.outbound) as client:
        assert b"STARTTLS" not in offers(client)
        assert client.say(b"STARTTLS").code == 502


def test_starttls_with_an_argument_is_a_syntax_error_and_the_session_goes_on(service: ServiceProcess) -> None:
    """RFC 3207 section 4: it has no parameters."""
    with SmtpClient(service.outbound) as client:
        assert client.say(b"STARTTLS now").text.startswith(b"501 5.5.4 ")
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250


def test_nothing_that_was_said_in_clear_counts_in_tls(
    service: ServiceProcess, next_hop: RecordingNextHop, trusting: ssl.SSLContext
) -> None:
    """Whoever sits on the way could have said it: EHLO is wanted again, and the transaction is gone."""
    next_hop.forget()
    with SmtpClient(service.outbound) as client:
        assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
        assert client.say(b"RCPT TO:<eve@peer.example>").code == 250
        client.start_tls(trusting)
        assert client.say(b"RCPT TO:<ann@peer.example>").code == 503
        assert client.say(b"MAIL FROM:<joe@example.com>").code == 503
        offers(client)
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
    assert [message.recipients for message in next_hop.messages] == [(b"<ann@peer.example>",)]


def test_what_a_peer_said_of_its_client_in_clear_does_not_count_in_tls(
    authority: Authority, next_hop: RecordingNextHop, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    """XCLIENT and XFORWARD from whoever sits on the way would put his name on another's mail."""
    peers = 'xclient_from = ["127.0.0.0/8"]\nxforward_from = ["127.0.0.0/8"]\n'
    with (
        ServiceProcess(tmp_path, next_hop.address, options=listening(authority) + peers) as service,
        SmtpClient(service.outbound) as client,
    ):
        assert client.say(b"XFORWARD ADDR=192.0.2.7").code == 250
        assert client.say(b"XCLIENT ADDR=127.0.0.7 HELO=evil.example").code == 220
        offers(client)
        client.start_tls(trusting)
        offers(client)
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
        assert [record["client"] for record in service.journal()] == ["127.0.0.1"]


def test_commands_behind_starttls_are_dropped(
    service: ServiceProcess, next_hop: RecordingNextHop, trusting: ssl.SSLContext
) -> None:
    """CVE-2011-0411: they came in clear, from whoever sits on the way, and would be carried out in TLS."""
    next_hop.forget()
    with SmtpClient(service.outbound) as client:
        client.send(b"STARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<joe@example.com>\r\nRCPT TO:<eve@peer.example>\r\n")
        assert client.reply().code == 220
        client.encrypt(trusting)
        assert client.say(b"RCPT TO:<ann@peer.example>").code == 503
        assert client.say(b"NOOP").code == 250
        assert client.say(b"QUIT").code == 221
    assert next_hop.commands == []


def said_starttls(service: ServiceProcess) -> SmtpClient:
    """Return a client that may begin its handshake."""
    client = SmtpClient(service.outbound)
    assert client.say(b"STARTTLS").code == 220
    return client


def begun_tls(service: ServiceProcess) -> SmtpClient:
    """Return a client that is to begin with its handshake."""
    return SmtpClient(service.address("outbound", tls=True), greet=False)


def says_garbage(client: SmtpClient) -> None:
    """Send what no handshake begins with."""
    client.send(b"\x00\xff" * 200)


def speaks_smtp(client: SmtpClient) -> None:
    """Go on in clear."""
    client.send(b"EHLO client.example\r\n")


def begins_and_closes(client: SmtpClient) -> None:
    """Send the beginning of a ClientHello and close."""
    client.send(client_hello()[:100])
    client.socket.shutdown(socket.SHUT_RDWR)


def says_nothing(client: SmtpClient) -> None:
    """Wait for the other end."""
    del client


def ended(client: SmtpClient) -> bool:
    """Whether the proxy has closed; reads what it said until then."""
    with suppress(ConnectionError):
        while client.socket.recv(4096):
            pass
    return True


@cache
def client_hello() -> bytes:
    """Return the first octets of a handshake, the same ones each time."""
    begun = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), begun, server_hostname=SERVER_NAME).do_handshake()
    return begun.read()


@pytest.mark.parametrize("begin", [said_starttls, begun_tls])
@pytest.mark.parametrize(
    "fail",
    [half_closes, resets, says_garbage, speaks_smtp, begins_and_closes, says_nothing],
    ids=lambda each: each.__name__,
)
def test_a_handshake_that_comes_to_nothing_ends_the_connection_and_leaves_nothing(
    service: ServiceProcess,
    record_testsuite_property: Callable[[str, object], None],
    begin: Callable[[ServiceProcess], SmtpClient],
    fail: Callable[[SmtpClient], None],
) -> None:
    """A hundred of each, as scanners make them: closed in bounded time, no descriptor and no memory stays behind."""
    process = psutil.Process(service.pid)
    ports = {service.outbound[1], service.address("outbound", tls=True)[1]}

    def all_gone() -> bool:
        connections = process.net_connections("tcp")
        return not any(each.laddr.port in ports and each.status != psutil.CONN_LISTEN for each in connections)

    def fail_all(count: int) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(begin(service)) for _ in range(count)]
            for client in clients:
                fail(client)
            assert all(ended(client) for client in clients if client.socket.fileno() >= 0)
        until(all_gone, "end of the connections", 10)

    line = "no TLS with a client: client=127.0.0.1, cause="
    lines = service.log.count(line)
    for _ in range(3):
        fail_all(_MANY)  # what the allocator keeps for the next hundred is no leak
    descriptors, memory = process.num_fds(), service.memory()
    for _ in range(2):
        fail_all(_MANY)
    assert process.num_fds() <= descriptors + 1, "one connection to the next hop may have been made anew"
    grown = service.memory() - memory
    record_testsuite_property(f"{begin.__name__}, {fail.__name__}: octets more after {2 * _MANY}", grown)
    assert grown < 2 * _MANY * _BUFFER_OCTETS // 4
    if begin is begun_tls and fail in {half_closes, says_nothing}:
        assert service.log.count(line) == lines, "health checks do so all day"
    elif fail is not resets:  # which may come before the proxy has begun
        until(lambda: service.log.count(line) >= lines + 5 * _MANY, "lines in the log", 10)
    assert "ERROR" not in service.log
    assert "Traceback" not in service.log
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250


def test_a_handshake_on_a_plain_port_is_refused_as_the_nonsense_it_is(service: ServiceProcess) -> None:
    """The client has the wrong port; its octets are no commands."""
    with SmtpClient(service.outbound, greet=False) as client:
        assert client.reply().code == 220
        client.send(client_hello())
        client.socket.shutdown(socket.SHUT_WR)
        heard = []
        while (reply := client.reply()).code:
            heard.append(reply.code)
    assert set(heard) <= {500}
    assert "ERROR" not in service.log


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_1_is_refused_and_the_log_says_so(service: ServiceProcess) -> None:
    """RFC 8996: what it hides can be read; an administrator must see which client that was."""
    ancient = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ancient.check_hostname, ancient.verify_mode = False, ssl.CERT_NONE
    ancient.set_ciphers("ALL:@SECLEVEL=0")
    ancient.minimum_version = ancient.maximum_version = ssl.TLSVersion.TLSv1_1
    at = len(service.log)
    with SmtpClient(service.outbound) as client, pytest.raises(ssl.SSLError):
        client.start_tls(ancient)
    line = service.wait_for_log(r"^.*no TLS with a client: client=127\.0\.0\.1, cause=.*$", after=at)[0]
    assert re.search(r"unsupported.protocol", line, re.IGNORECASE)


def shaken(tls: ssl.SSLObject) -> bool:
    """Go on with a handshake; return once it is done."""
    tls.do_handshake()
    return True


@pytest.mark.parametrize("first", [True, False], ids=["implicit", "STARTTLS"])
def test_a_handshake_that_comes_octet_by_octet_succeeds(
    service: ServiceProcess, trusting: ssl.SSLContext, *, first: bool
) -> None:
    """Networks cut where they like."""
    with begun_tls(service) if first else said_starttls(service) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting.wrap_bio(came, goes, server_hostname=SERVER_NAME)

        def until_done(step: Callable[[], object]) -> object:
            while True:
                try:
                    done = step()
                except ssl.SSLWantReadError:
                    done = None
                for octet in goes.read():
                    client.socket.sendall(bytes((octet,)))
                if done is not None:
                    return done
                came.write(client.socket.recv(65_536))

        until_done(lambda: shaken(tls))
        if first:
            assert str(until_done(lambda: tls.read(1000))).startswith("b'220 ")
        tls.write(b"EHLO client.example\r\n")
        assert str(until_done(lambda: tls.read(1000))).startswith("b'250-")


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "two segments"])
def test_a_handshake_may_follow_a_proxy_header_at_once(  # noqa: PLR0913 -- both ends, and the case
    authority: Authority, next_hop: RecordingNextHop, tmp_path: Path, loop: str, version: int, *, together: bool
) -> None:
    """A load balancer that passes port 465 on sends its header and the client's octets in one go."""
    options = listening(authority) + 'proxy_protocol_from = ["127.0.0.0/8"]\n'
    header = {
        1: b"PROXY TCP4 127.0.0.9 192.0.2.1 4711 465\r\n",
        2: b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
        + bytes((127, 0, 0, 9, 192, 0, 2, 1))
        + struct.pack(">HH", 4711, 465),
    }[version]
    context = ssl.create_default_context(cafile=str(authority.ca))
    with ServiceProcess(tmp_path, next_hop.address, options=options, code=LOOPS[loop]) as service:
        for _ in range(20):
            connection = socket.create_connection(service.address("outbound", tls=True), timeout=30)
            with connection:
                came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(came, goes, server_hostname=SERVER_NAME)
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                if not together:
                    connection.sendall(header)
                    header_sent = b""
                else:
                    header_sent = header
                connection.sendall(header_sent + goes.read())
                heard = b""
                while not heard:
                    came.write(connection.recv(65_536))
                    with suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                        connection.sendall(goes.read())
                        heard = tls.read(1000)
                assert heard.startswith(b"220 ")


def test_clients_that_begin_their_handshake_at_once_are_all_served(
    service: ServiceProcess, trusting: ssl.SSLContext
) -> None:
    """Octets that come while the proxy is about to listen for a handshake must not be lost."""

    def hear(_: int) -> int:
        with SmtpClient(service.address("outbound", tls=True), tls=trusting, greet=False) as client:
            return client.reply().code

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(hear, range(3 * _MANY))) == {220}


# The client goes.


def says_goodbye(client: SmtpClient) -> None:
    """Send TLS's own word for the end, and wait for none."""
    assert isinstance(client.socket, ssl.SSLSocket)
    client.socket.settimeout(0)
    with suppress(ssl.SSLWantReadError):
        client.socket.unwrap()


def begun_message(service: ServiceProcess, proxy: str, trusting: ssl.SSLContext, way: str) -> SmtpClient:
    """Return a client that has sent a message but for its final dot."""
    client = coming(service, proxy, way, trusting)
    begin_message(client, service, proxy)
    return client


_LEAVING: Final = [half_closes, resets, says_goodbye]


@pytest.mark.parametrize("leave", _LEAVING)
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
@pytest.mark.parametrize("came", ["STARTTLS", "implicit"])
def test_half_a_message_in_tls_gets_no_dot(  # noqa: PLR0913, PLR0917 -- both ends, and the case
    service: ServiceProcess,
    next_hop: RecordingNextHop,
    trusting: ssl.SSLContext,
    came: str,
    proxy: str,
    leave: Callable[[SmtpClient], None],
) -> None:
    """The next hop would take it for the whole, and the client sends it once more."""
    next_hop.forget()
    with begun_message(service, proxy, trusting, came) as client:
        assert next_hop.content.wait(30)
        at = len(service.log)
        leave(client)
        service.wait_for_log(rf"{proxy}: .*cause=<client gone>", after=at)
    until(lambda: next_hop.connections[-1].ended, "end of the connection to the next hop")
    assert next_hop.messages == []
    assert sum(connection.dots for connection in next_hop.connections) == 0


@pytest.mark.parametrize("leave", _LEAVING)
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
@pytest.mark.parametrize("came", ["STARTTLS", "implicit"])
def test_a_client_in_tls_that_leaves_after_the_dot_is_answered_on_the_record(  # noqa: PLR0913, PLR0917 -- as above
    service: ServiceProcess,
    next_hop: RecordingNextHop,
    trusting: ssl.SSLContext,
    came: str,
    proxy: str,
    leave: Callable[[SmtpClient], None],
) -> None:
    """The message is delivered once; the journal says so, though nobody heard it."""
    next_hop.forget()
    next_hop.hold_answer()
    with begun_message(service, proxy, trusting, came) as client:
        client.send(b".\r\n")
        assert next_hop.dots.wait(30)
        records = len(service.journal()) if service.journal_path.exists() else 0
        at = len(service.log)
        leave(client)
    next_hop.go_on()
    service.wait_for_log(rf"{proxy}: .*reply=<250 ", after=at)
    assert [message.content for message in next_hop.messages] == [HALF_A_MESSAGE]
    assert [record["reply"][:3] for record in service.journal()[records:]] == ["250"]


# Certificates that change.


def shown_serial(service: ServiceProcess, trusting: ssl.SSLContext, client: SmtpClient | None = None) -> str:
    """Return the serial number of the certificate that a client is shown: a new one unless another is given."""
    if client is None:
        with SmtpClient(service.address("outbound", tls=True), tls=trusting) as new:
            return shown_serial(service, trusting, new)
    assert isinstance(client.socket, ssl.SSLSocket)
    found = client.socket.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


@pytest.mark.parametrize("loop", list(LOOPS))
def test_a_reload_shows_the_new_certificate_and_a_broken_one_is_refused(
    authority: Authority, next_hop: RecordingNextHop, trusting: ssl.SSLContext, tmp_path: Path, loop: str
) -> None:
    """Certbot renews every two months and sends SIGHUP; sessions go on, and half a file costs nothing."""
    certificate, key = (tmp_path / name for name in ("chain.pem", "key.pem"))

    def put(pair: tuple[Path, Path]) -> None:
        for to, file in zip((certificate, key), pair, strict=True):
            to.touch(mode=0o600)
            to.write_bytes(file.read_bytes())

    put(authority.issue(SERVER_NAME))
    options = f'tls_certificate = "{certificate}"\ntls_key = "{key}"\nlisten_tls = ["127.0.0.1:0"]\n'
    with (
        ServiceProcess(tmp_path, next_hop.address, options=options, code=LOOPS[loop]) as service,
        SmtpClient(service.address("outbound", tls=True), tls=trusting) as client,
    ):
        first = shown_serial(service, trusting)
        put(authority.issue(SERVER_NAME))
        assert "reloaded" in reloaded(service)
        second = shown_serial(service, trusting)
        assert second != first
        assert shown_serial(service, trusting, client) == first
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
        certificate.write_bytes(certificate.read_bytes()[:100])
        said = reloaded(service)
        assert "reload refused, the old settings and keys stay: cause=cannot use the certificate" in said
        assert str(certificate) in said
        assert shown_serial(service, trusting) == second
        put(authority.issue(SERVER_NAME))
        key.chmod(0o644)
        assert "open to other users" in reloaded(service)
        assert shown_serial(service, trusting) == second


def reloaded(service: ServiceProcess) -> str:
    """Reload; return what the log says since."""
    at = len(service.log)
    service.reload()
    service.wait_for_log(r"reloaded|reload refused", after=at)
    return service.log[at:]


# What it costs.


@pytest.mark.parametrize("loop", list(LOOPS))
def test_two_hundred_idle_connections_in_tls_cost_little_each(  # noqa: PLR0913, PLR0917 -- both ends, and the record
    authority: Authority,
    next_hop: RecordingNextHop,
    trusting: ssl.SSLContext,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
    loop: str,
) -> None:
    """Clients keep connections; a proxy with 2000 of them must still fit a small machine."""
    count = 200
    with (
        ServiceProcess(tmp_path, next_hop.address, options=listening(authority), code=LOOPS[loop]) as service,
        ExitStack() as stack,
    ):
        address = service.address("outbound", tls=True)
        warm = [stack.enter_context(SmtpClient(address, tls=trusting)) for _ in range(20)]
        assert warm[0].say(b"NOOP").code == 250
        before = service.memory()
        clients = [stack.enter_context(SmtpClient(address, tls=trusting)) for _ in range(count)]
        each = (service.memory() - before) // count
        assert {client.say(b"NOOP").code for client in clients} == {250}
    record_testsuite_property(f"{loop}: octets for an idle connection in TLS", each)
    # asyncio writes zeros into its buffers, and so takes the memory for them, before anything has come.
    assert each < 128 * 1024 + (_BUFFER_OCTETS if loop == "asyncio" else 0)
