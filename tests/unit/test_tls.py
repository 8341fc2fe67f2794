"""TLS: which files are taken, which peers are believed, and what is known of them."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from batv.access import name_matches
from batv.config import NextHopTls
from batv.errors import BatvError, ConfigError, UnsafeFileError
from batv.net.tls import certificate_names, client_context, describe, server_context
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME: Final = "mx.example.com"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return the authority that the peers of the test trust."""
    (tmp_path / "ca").mkdir()
    return Authority(tmp_path / "ca")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Return an authority that nobody trusts."""
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


def listener(authority: Authority, *names: str, ip: str | None = None, expired: bool = False) -> ssl.SSLContext:
    """Return the context of a listener that has a certificate and asks clients for theirs."""
    certificate, key = authority.issue(*names, ip=ip, expired=expired)
    return server_context(str(certificate), str(key), str(authority.ca))


def client_with(authority: Authority, shown: tuple[Path, Path] | None) -> ssl.SSLContext:
    """Return the context of a client that shows a certificate, or none."""
    context = client_context(NextHopTls.REQUIRED, str(authority.ca))
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, name: str = NAME) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return both ends, the server's first, after the handshake and an octet each way, without a network between.

    Raises:
        ssl.SSLError: one end does not want the other.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name),
    )
    # In TLS 1.3 the client hears only after the handshake what the server thinks of its certificate.
    for step in (lambda end: end.do_handshake(), lambda end: end.write(b"!"), lambda end: end.read(1)):
        waiting = list(reversed(ends))
        for _ in range(10):
            waiting = [end for end in waiting if not done(step, end)]
        assert not waiting
    return ends


def done(step: Callable[[ssl.SSLObject], object], end: ssl.SSLObject) -> bool:
    """Take a step of one end, and return whether it needs nothing more from the other."""
    try:
        step(end)
    except ssl.SSLWantReadError:
        return False
    return True


def refusal(certificate: Path, key: Path | None = None, client_ca: Path | None = None) -> str:
    """Return what is said of files that a listener cannot use."""
    with pytest.raises(ConfigError) as caught:
        server_context(str(certificate), str(key) if key else None, str(client_ca) if client_ca else None)
    return str(caught.value)


def test_both_ends_agree_on_the_newest_protocol(authority: Authority) -> None:
    """What the log says of a connection is what an administrator shows to an auditor."""
    server, client = shaken(listener(authority, NAME), client_with(authority, None))
    assert describe(server) == describe(client)
    assert describe(server).startswith("TLSv1.3 TLS_")


def test_nothing_is_described_before_the_handshake(authority: Authority) -> None:
    """A connection that ends in it is logged too."""
    assert not describe(listener(authority, NAME).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize("old", ["server", "client"])
def test_a_peer_that_knows_nothing_newer_than_tls_1_1_is_refused(authority: Authority, old: str) -> None:
    """RFC 8996 forbids it: what it hides can be read. Peers that encrypt if they can come again in the clear."""
    contexts = {"server": listener(authority, NAME), "client": client_context(NextHopTls.OPPORTUNISTIC, None)}
    ancient = contexts[old]
    ancient.set_ciphers("ALL:@SECLEVEL=0")
    ancient.minimum_version = ancient.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shaken(contexts["server"], contexts["client"])


def test_tls_1_2_is_still_spoken(authority: Authority) -> None:
    """Mail servers that know no more are many."""
    client = client_with(authority, None)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert describe(shaken(listener(authority, NAME), client)[0]).startswith("TLSv1.2 ECDHE-")


def test_the_key_may_stand_in_the_file_of_the_certificate(authority: Authority, tmp_path: Path) -> None:
    """Postfix and HAProxy like it so."""
    certificate, key = authority.issue(NAME)
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    shaken(server_context(str(both), None, None), client_with(authority, None))
    both.chmod(0o644)
    with pytest.raises(UnsafeFileError, match=r"both\.pem has mode 0644, open to other users: run chmod 600 "):
        server_context(str(both), None, None)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_open_is_refused(authority: Authority, mode: int) -> None:
    """Who has the key is the server, to everybody who asks."""
    certificate, key = authority.issue(NAME)
    key.chmod(mode)
    with pytest.raises(UnsafeFileError, match=rf"{key.name} has mode {mode:04o}, open to other users"):
        server_context(str(certificate), str(key), None)


def test_a_key_from_the_service_manager_may_have_an_access_control_list(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how a service without rights gets at a key of root; the list's mask looks like rights of the group."""
    certificate, key = authority.issue(NAME)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.parent))
    key.chmod(0o440)
    server_context(str(certificate), str(key), None)
    key.chmod(0o444)
    with pytest.raises(UnsafeFileError, match="has mode 0444"):
        server_context(str(certificate), str(key), None)


def test_links_are_followed(authority: Authority, tmp_path: Path) -> None:
    """What certbot leaves under live/ are links to the newest certificate and its key."""
    links = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    for link, file in zip(links, authority.issue(NAME), strict=True):
        link.symlink_to(file)
    server_context(str(links[0]), str(links[1]), None)


def test_what_is_wrong_with_a_file_is_said_of_that_file(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL says 'PEM lib' to all of them. Nothing of what a file holds is repeated."""
    certificate, key = authority.issue(NAME)
    _, other = authority.issue(NAME)
    gone, text = tmp_path / "gone.pem", tmp_path / "text.pem"
    text.touch(mode=0o600)
    text.write_text("Passw0rd\n")
    damaged = tmp_path / "damaged.pem"
    damaged.touch(mode=0o600)
    damaged.write_bytes(certificate.read_bytes()[:100] + key.read_bytes())
    sealed = tmp_path / "sealed.pem"
    sealed.touch(mode=0o600)
    private = load_pem_private_key(key.read_bytes(), None)
    sealed.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"Passw0rd")))
    weak = authority.issue(NAME, weak=True)
    said = {
        "gone": refusal(gone, key),
        "key gone": refusal(certificate, gone),
        "authority gone": refusal(certificate, key, gone),
        "no certificate": refusal(text, key),
        "no key": refusal(certificate, text),
        "no authority": refusal(certificate, key, text),
        "damaged": refusal(damaged, key),
        "another's key": refusal(certificate, other),
        "encrypted": refusal(certificate, sealed),
        "folder": refusal(tmp_path, key),
        "weak": refusal(*weak),
    }
    assert {case: line.rpartition(": ")[0] for case, line in said.items()} == {
        "gone": f"cannot use the certificate {gone}: no such file or directory",
        "key gone": f"cannot use the key {gone}: no such file or directory",
        "authority gone": f"cannot use the certificate {gone}: no such file or directory",
        "no certificate": f"cannot use the certificate {text}: it holds no certificate in PEM form",
        "no key": f"cannot use the key {text}: it holds no key in PEM form",
        "no authority": f"cannot use the certificate {text}: it holds no certificate in PEM form",
        "damaged": (
            f"cannot use the certificate {damaged}: it or its key {key} is damaged, or of a kind not known here"
        ),
        "another's key": f"cannot use the certificate {certificate}: the key {other} is that of another one",
        "encrypted": f"cannot use the key {sealed}: it is encrypted, and nobody is there to give the password",
        "folder": f"cannot use the certificate {tmp_path}: is a directory",
        "weak": f"cannot use the certificate {weak[0]}: OpenSSL takes it for too weak",
    }
    assert "Passw0rd" not in "".join(said.values())


def test_a_pipe_is_not_waited_for(authority: Authority, tmp_path: Path) -> None:
    """A reload would hang for as long as nobody writes."""
    certificate, _ = authority.issue(NAME)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    assert "it is no regular file" in refusal(certificate, pipe)


def test_a_client_may_come_without_a_certificate(authority: Authority) -> None:
    """Most have none, and are known by their address."""
    server, _ = shaken(listener(authority, NAME), client_with(authority, None))
    assert certificate_names(server) == frozenset()


def test_the_names_of_a_client_are_those_of_its_verified_certificate(authority: Authority) -> None:
    """Whoever is let in by name must have been named by the authority; an IP address is no name."""
    shown = authority.issue("Out.Example.COM", "*.relay.example", ip="192.0.2.1")
    server, client = shaken(listener(authority, NAME), client_with(authority, shown))
    assert certificate_names(server) == {"out.example.com", "*.relay.example"}
    assert certificate_names(client) == {NAME}


def test_the_common_name_of_a_certificate_counts_for_nothing(authority: Authority) -> None:
    """Authorities check what stands in the subjectAltName; the common name may be any text."""
    certificate, key = authority.issue(ip="192.0.2.1")
    server, _ = shaken(listener(authority, NAME), client_with(authority, (certificate, key)))
    assert certificate_names(server) == frozenset()


@pytest.mark.parametrize("fault", ["stranger", "expired"])
def test_a_client_whose_certificate_is_not_vouched_for_is_refused(
    authority: Authority, stranger: Authority, fault: str
) -> None:
    """Anybody can make a certificate with any name."""
    shown = (
        stranger.issue("out.example.com") if fault == "stranger" else authority.issue("out.example.com", expired=True)
    )
    with pytest.raises(ssl.SSLError):
        shaken(listener(authority, NAME), client_with(authority, shown))


def test_no_client_is_asked_for_a_certificate_without_an_authority(authority: Authority) -> None:
    """One that is not verified would name whomever its holder likes."""
    certificate, key = authority.issue(NAME)
    client = client_with(authority, authority.issue("out.example.com"))
    server, _ = shaken(server_context(str(certificate), str(key), None), client)
    assert certificate_names(server) == frozenset()


@pytest.mark.parametrize("mode", [NextHopTls.REQUIRED, NextHopTls.IMPLICIT])
@pytest.mark.parametrize("fault", ["another name", "stranger", "expired", "none"])
def test_a_next_hop_must_be_the_right_one_where_that_is_required(
    authority: Authority, stranger: Authority, mode: NextHopTls, fault: str
) -> None:
    """Whoever sits on the way could else take the mail, and the password."""
    server = {
        "another name": lambda: listener(authority, "other.example.com"),
        "stranger": lambda: listener(stranger, NAME),
        "expired": lambda: listener(authority, NAME, expired=True),
        "none": lambda: listener(authority, NAME),
    }[fault]()
    client = client_context(mode, str(authority.ca))
    if fault == "none":
        shaken(server, client)
        return
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server, client)


def test_a_next_hop_may_be_named_by_its_ip_address(authority: Authority) -> None:
    """Inside a data centre many servers have no name."""
    client = client_context(NextHopTls.REQUIRED, str(authority.ca))
    shaken(listener(authority, ip="192.0.2.1"), client, "192.0.2.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(listener(authority, ip="192.0.2.1"), client, "192.0.2.2")


def test_an_opportunistic_connection_takes_every_certificate(stranger: Authority) -> None:
    """Without it the mail would go in the clear, which is worse (RFC 7435)."""
    shaken(listener(stranger, "other.example.com", expired=True), client_context(NextHopTls.OPPORTUNISTIC, None))


def test_the_system_s_authorities_are_trusted_where_none_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A next hop in the cloud has a certificate of one of them."""
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(listener(authority, NAME), client_context(NextHopTls.REQUIRED, None))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    shaken(listener(authority, NAME), client_context(NextHopTls.REQUIRED, None))


def test_an_authority_of_the_next_hop_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """Without it every message would be deferred, and nobody told why."""
    with pytest.raises(BatvError, match=r"cannot use the certificate .*gone\.pem: no such file or directory"):
        client_context(NextHopTls.REQUIRED, str(tmp_path / "gone.pem"))


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("mail.example.com", "mail.example.com", True),
        ("Mail.Example.COM", "mail.example.com", True),
        ("mail.example.com", "other.example.com", False),
        ("mail.example.com", "*.example.com", False),
        ("mail.example.com", "a.mail.example.com", False),
        ("*.example.com", "mail.example.com", True),
        ("*.example.com", "*.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "mailexample.com", False),
        ("*.example.com", "mail.example.com.evil.example", False),
    ],
)
def test_a_pattern_stands_for_itself_or_for_one_label(pattern: str, name: str, *, matches: bool) -> None:
    """A pattern that stood for more would let in whoever gets a name below it."""
    assert name_matches(pattern, {name, "unrelated.example"}) is matches


def test_no_pattern_matches_a_peer_without_names() -> None:
    """That is everybody who shows no certificate."""
    assert not name_matches("*.example.com", ())
