"""TLS and AUTH towards the next hop: never in clear where TLS is required, never a password where others read."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from tests.support.certificates import Authority
from tests.support.next_hop import TLS_READY, RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import Heard, SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from aiosmtpd.smtp import Envelope, Session

_IMPATIENT: Final = "[next_hop]\nconnect_seconds = 1\ncommand_seconds = 5\n"
_NAME: Final = "hop.example"
_USER: Final = "proxy@hop.example"
_PASSWORD: Final = "pässword of ours"
_LATER: Final = b"451 4.3.0 Temporary failure, try again later\r\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority that the proxy trusts."""
    return made(tmp_path / "authority")


@pytest.fixture(params=list(LOOPS))
def code(request: pytest.FixtureRequest) -> str:
    """What the service runs, for each event loop."""
    return LOOPS[request.param]


def made(folder: Path) -> Authority:
    """Return an authority."""
    folder.mkdir()
    return Authority(folder)


def serving(authority: Authority, name: str = _NAME, *, expired: bool = False) -> ssl.SSLContext:
    """What a next hop does TLS with."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue(name, expired=expired))
    return context


@contextmanager
def relaying(folder: Path, next_hop: str, options: str, code: str) -> Iterator[ServiceProcess]:
    """A service with these options, out of patience soon."""
    with ServiceProcess(folder, next_hop, _IMPATIENT, options=options, code=code) as service:
        yield service


def verifying(mode: str, authority: Authority) -> str:
    """Return the options of a proxy that verifies its next hop."""
    return f'next_hop_tls = "{mode}"\nnext_hop_tls_ca = "{authority.ca}"\nnext_hop_tls_name = "{_NAME}"\n'


def sent(service: ServiceProcess, proxy: str = "outbound") -> Heard:
    """Send a message, and return what became of it."""
    with SmtpClient(service.address(proxy)) as client:
        return client.mail(b"ann@example.com", [b"joe@example.com"], b"x\r\n")


_REFUSED: Final = {
    "another name": "certificate verify failed: Hostname mismatch",
    "another authority": "certificate verify failed",
    "expired": "certificate has expired",
    "not offered": "does not offer STARTTLS, and next_hop_tls requires it",
    "454": "answered STARTTLS with 454 4.7.0 TLS not available",
    "injected": "next hop unexpected reply: 250",
    "half injected": "sends what nobody waits for",
    "closes": "closed the connection",
    "hangs": "SSL handshake is taking longer than 1.0 seconds",
}


def failing(hop: RecordingNextHop, fault: str, authority: Authority, stranger: Authority) -> None:
    """Let the TLS of a next hop be wrong in some way."""
    hop.tls = serving(authority)
    match fault:
        case "another name":
            hop.tls = serving(authority, "other.example")
        case "another authority":
            hop.tls = serving(stranger)
        case "expired":
            hop.tls = serving(authority, expired=True)
        case "not offered":
            hop.tls = None
        case "454":
            hop.tls_answer = b"454 4.7.0 TLS not available\r\n"
        case "injected":
            hop.tls_answer = TLS_READY + b"250 2.0.0 injected\r\n"
        case "half injected":
            hop.tls_answer = TLS_READY + b"250 2.0.0 inj"
        case "closes":
            hop.tls_answer = b""
        case _:
            hop.tls_shakes = False


@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_a_next_hop_that_is_who_it_must_be_gets_the_mail(
    tmp_path: Path, authority: Authority, code: str, proxy: str
) -> None:
    """Only EHLO and STARTTLS are said in clear; the connection is used again, without another handshake."""
    with RecordingNextHop() as hop:
        hop.tls = serving(authority)
        with relaying(tmp_path, hop.address, verifying("required", authority), code) as service:
            assert [sent(service, proxy).code for _ in range(3)] == [250, 250, 250]
    assert len(hop.messages) == 3
    (connection,) = hop.connections
    assert connection.tls == "TLSv1.3"
    assert [command.split()[0] for command in connection.commands[: connection.in_clear]] == [b"EHLO", b"STARTTLS"]


@pytest.mark.parametrize("fault", [fault for fault in _REFUSED if fault != "closes"])
def test_a_next_hop_that_may_be_another_gets_nothing(
    tmp_path: Path, authority: Authority, code: str, fault: str
) -> None:
    """451, the mail stays with the client; nothing of it was said in clear, and the log says why."""
    with RecordingNextHop() as hop:
        failing(hop, fault, authority, made(tmp_path / "stranger"))
        with relaying(tmp_path, hop.address, verifying("required", authority), code) as service:
            assert sent(service).text == _LATER
            # uvloop says it in its own words where the handshake hangs.
            pattern = r"cause=<[^>]*handshake" if fault == "hangs" else rf"cause=<[^>]*{_REFUSED[fault]}"
            service.wait_for_log(pattern)
            assert "ERROR" not in service.log
    assert hop.messages == []
    assert hop.connections
    for connection in hop.connections:
        assert {command.split()[0] for command in connection.commands} <= {b"EHLO", b"STARTTLS"}


@pytest.mark.parametrize("fault", ["none", *_REFUSED])
def test_where_tls_is_opportunistic_mail_goes_encrypted_or_in_clear(
    tmp_path: Path, authority: Authority, code: str, fault: str
) -> None:
    """Whatever certificate there is; and without TLS on a new connection, since the old one cannot be used any more."""
    with RecordingNextHop() as hop:
        failing(hop, fault if fault != "none" else "another name", authority, made(tmp_path / "stranger"))
        with relaying(tmp_path, hop.address, 'next_hop_tls = "opportunistic"\n', code) as service:
            assert sent(service).code == 250
    encrypted = fault in {"none", "another name", "another authority", "expired"}
    connection = hop.connections[-1]
    assert bool(connection.tls) is encrypted
    assert (b"STARTTLS" in connection.commands) is encrypted
    assert connection.dots == 1


def test_tls_from_the_first_octet_is_verified_too(tmp_path: Path, authority: Authority, code: str) -> None:
    """A next hop with the wrong name gets nothing, the right one the mail."""
    with RecordingNextHop() as hop:
        hop.tls, hop.tls_first = serving(authority), True
        hop.stop_listening()
        hop.listen()
        with relaying(tmp_path, hop.address, verifying("implicit", authority), code) as service:
            assert sent(service).code == 250
            options = verifying("implicit", authority).replace(_NAME, "other.example")
            service.configure(_IMPATIENT, options=options)
            at = len(service.log)
            service.reload()
            service.wait_for_log("reloaded", after=at)
            assert sent(service).text == _LATER
            service.wait_for_log(r"cause=<[^>]*Hostname mismatch", after=at)
    assert [connection.tls for connection in hop.connections if connection.commands] == ["TLSv1.3"]


def test_a_greeting_in_clear_is_not_taken_for_one_in_tls(tmp_path: Path, authority: Authority, code: str) -> None:
    """Whoever sits on the way could put it before the handshake, and every reply would answer the wrong command."""
    context = serving(authority)
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                with suppress(OSError), raw:
                    raw.settimeout(10)
                    raw.sendall(b"220 evil.example ESMTP\r\n")
                    with context.wrap_socket(raw, server_side=True) as tls:
                        tls.sendall(b"220 hop.example ESMTP\r\n")
                        while octets := tls.recv(4096):
                            heard.append(octets)
                            tls.sendall(b"250 2.0.0 Ok\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with relaying(tmp_path, address, verifying("implicit", authority), code) as service:
            assert sent(service).text == _LATER
            service.wait_for_log(r"cause=<the next hop (sent something in clear|sends what|and we have found no TLS)")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert heard == []


def test_the_next_server_is_tried_where_the_first_one_fails_in_tls(
    tmp_path: Path, authority: Authority, code: str
) -> None:
    """A certificate that has expired on one server stops no mail while another one is there."""
    with RecordingNextHop() as bad, RecordingNextHop() as good:
        bad.tls, good.tls = serving(authority, expired=True), serving(authority)
        addresses = f'{bad.address}", "{good.address}'
        service = ServiceProcess(tmp_path, bad.address, _IMPATIENT, options=verifying("required", authority), code=code)
        text = service.config.read_text()
        service.config.write_text(text.replace(f'next_hop = "{bad.address}"', f'next_hop = ["{addresses}"]'))
        with service:
            assert [sent(service).code for _ in range(2)] == [250, 250]
    assert len(good.messages) == 2
    assert bad.messages == []


# Logging in.


class _Peer:
    """A mail server that wants to know who speaks: aiosmtpd's, which implements AUTH by itself."""

    def __init__(self, context: ssl.SSLContext | None, excluded: list[str]) -> None:
        self.taken: list[tuple[str, bool]] = []
        self.port = 0
        self._context = context
        self._excluded = excluded
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(self._protocol, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _protocol(self) -> SMTP:
        return SMTP(
            self,
            hostname="peer.example",
            loop=self._loop,
            tls_context=self._context,
            authenticator=self._check,
            auth_required=self._context is not None,  # aiosmtpd warns of it in clear
            auth_require_tls=self._context is not None,
            auth_exclude_mechanism=self._excluded,
        )

    def _check(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, shown: object
    ) -> AuthResult:
        assert isinstance(shown, LoginPassword)
        right = shown == LoginPassword(_USER.encode(), _PASSWORD.encode())
        return AuthResult(success=right, handled=False, auth_data=shown)

    async def handle_DATA(self, _server: SMTP, session: Session, _envelope: Envelope) -> str:  # noqa: N802 -- aiosmtpd's
        """Take a message."""
        shown: object = session.auth_data
        user = shown.login.decode() if isinstance(shown, LoginPassword) else ""
        self.taken.append((user, session.ssl is not None))
        return "250 2.0.0 taken"


def credentials(folder: Path, password: str = _PASSWORD) -> str:
    """Write a file of credentials, and return the option that names it."""
    file = folder / "credentials"
    file.touch(mode=0o600)
    file.write_text(f"{_USER}\n{password}\n", encoding="utf-8")
    return f'next_hop_credentials = "{file}"\n'


def told(log: str, password: str) -> list[str]:
    """Return the forms of a password that a log shows."""
    plain = base64.b64encode(f"\0{_USER}\0{password}".encode()).decode()
    login = base64.b64encode(password.encode()).decode()
    return [form for form in (password, plain, login) if form in log]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "loopback"])
def test_the_proxy_logs_in_at_its_next_hop(
    tmp_path: Path, authority: Authority, code: str, mechanism: str, *, tls: bool
) -> None:
    """With either mechanism, where the server offers it only in TLS, too; each message is taken from that user."""
    excluded = ["LOGIN" if mechanism == "PLAIN" else "PLAIN"]
    with _Peer(serving(authority) if tls else None, excluded) as peer:
        options = credentials(tmp_path) + (verifying("required", authority) if tls else "")
        with relaying(tmp_path, f"127.0.0.1:{peer.port}", options, code) as service:
            assert [sent(service).code for _ in range(2)] == [250, 250]
            assert told(service.log, _PASSWORD) == []
    assert peer.taken == [(_USER, tls)] * 2


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_wrong_password_keeps_the_mail_with_the_client_and_out_of_the_log(
    tmp_path: Path, authority: Authority, code: str, mechanism: str
) -> None:
    """A password that was changed on one side costs no mail, and the log says what to mend, but not the password."""
    excluded = ["LOGIN" if mechanism == "PLAIN" else "PLAIN"]
    with _Peer(serving(authority), excluded) as peer:
        options = credentials(tmp_path, "another password") + verifying("required", authority)
        with relaying(tmp_path, f"127.0.0.1:{peer.port}", options, code) as service:
            assert sent(service).text == _LATER
            service.wait_for_log(r"WARNING: next hop does not answer: .*does not let us log in: 535 5\.7\.8$")
            service.wait_for_log(r"WARNING: outbound: .*cause=<the next hop does not let us log in: 535 5\.7\.8>")
            assert told(service.log, "another password") == []
            assert "ERROR" not in service.log
    assert peer.taken == []


def test_a_next_hop_that_offers_no_login_gets_nothing(tmp_path: Path, authority: Authority, code: str) -> None:
    """It might be another server, or one that takes our mail for a stranger's."""
    with RecordingNextHop() as hop:
        hop.tls = serving(authority)
        options = credentials(tmp_path) + verifying("required", authority)
        with relaying(tmp_path, hop.address, options, code) as service:
            assert sent(service).text == _LATER
            service.wait_for_log(r"cause=<the next hop offers neither AUTH PLAIN nor AUTH LOGIN>")
    assert hop.messages == []


@pytest.mark.parametrize("answers", [[], [b"334 VXNlcm5hbWU6"], [b"334 VXNlcm5hbWU6", b"334 UGFzc3dvcmQ6"]])
@pytest.mark.parametrize("then", ["silent", "repeats"])
def test_a_next_hop_that_falls_silent_or_repeats_what_it_heard_tells_no_password(
    tmp_path: Path, code: str, answers: list[bytes], then: str
) -> None:
    """The log of a proxy is read by more people than its file of credentials."""
    password = "jga"
    assert base64.b64encode(password.encode()).islower(), "as the words for what a proxy waits for may be"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    raw, _ = listener.accept()
                    with suppress(OSError), raw, raw.makefile("rb") as lines:
                        raw.settimeout(10)
                        raw.sendall(b"220 peer.example\r\n")
                        lines.readline()
                        raw.sendall(b"250-peer.example\r\n250 AUTH LOGIN\r\n")
                        for answer in answers:
                            lines.readline()
                            raw.sendall(answer + b"\r\n")
                        line = lines.readline()
                        if then == "repeats":
                            raw.sendall(b"535 what is " + line)
                        lines.readline()

        thread = Thread(target=serve, daemon=True)
        thread.start()
        options = credentials(tmp_path, password)
        with relaying(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}", options, code) as service:
            assert sent(service).text == _LATER
            service.wait_for_log(r"cause=<the next hop (silent for 1 s after AUTH|does not let us log in: 535)>")
            assert told(service.log, password) == []
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
