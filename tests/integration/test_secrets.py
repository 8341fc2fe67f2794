"""Nothing that is written gives a secret away: known ones are planted, everything is tried, all is searched.

Searched are log and journal of a service that meets good, bad and broken mail and broken settings, what commands print,
and how objects show themselves. A secret must not be there as it is, nor in hex or base64, nor a piece of it. A whole
tag must not be there either: until it expires, whoever has it can have a bounce delivered.

Messages are exempt, where they are kept in the quarantine too: they are the senders' and stay as they came. The fields
that the quarantine puts before them are not. `batv sign` and `batv explain` of an address print tags because that is
what they are asked for; `batv explain` of a message or of what the journal has prints none.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from batv.address import Mailbox
from batv.cli import Site
from batv.keyring import Key, KeyRings, Secret
from batv.smtp.auth import Credentials
from batv.store.rings import RingStore, ring_octets
from batv.tag import take_off
from tests.support.command import child_environment
from tests.support.next_hop import Answer, RecordingNextHop, Stage
from tests.support.service import SECRET, SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MASTER_KEY: Final = b"canary-master-key-for-the-rings!"
_PASSWORD: Final = "canary-password-at-the-next-hop"
_PIECE: Final = 12
"""Characters of a secret that are enough to be found: a message may cut what it quotes."""

_WHOLE_TAG: Final = re.compile(r"prvs=[0-9]{4}[0-9a-f]{6}", re.IGNORECASE)

_FAULTY: Final = f"""
import batv.stage as stage
real = stage.VerifyingStage.recipient
def recipient(self, reverse, path, *rest):
    if b"fault" in path.octets:
        raise RuntimeError(f"cannot judge {{path.octets.decode()}}")
    return real(self, reverse, path, *rest)
stage.VerifyingStage.recipient = recipient
{SERVE}
"""
"""A service with an error of its own in it, whose text quotes what it was given."""


def pieces(secret: bytes) -> Iterator[str]:
    """Return the pieces of each form in which a secret could be written."""
    forms = (secret.decode("latin-1"), secret.hex(), base64.b64encode(secret).decode(), repr(list(secret))[1:-1])
    # Base64 differs with the place at which the secret begins; the first group may hold octets of something else.
    shifted = (base64.b64encode(bytes(shift) + secret).decode()[4:] for shift in (1, 2))
    for form in (*forms, *shifted):
        form = form.rstrip("=").lower()  # noqa: PLW2901 -- compared without regard to case
        for at in range(len(form) - _PIECE + 1):
            yield form[at : at + _PIECE]


_PIECES: Final = frozenset(piece for secret in (SECRET, _MASTER_KEY, _PASSWORD.encode()) for piece in pieces(secret))


def given_away(text: str, *, tags: bool = False) -> list[str]:
    """Return what of secrets, and of tags unless they may be there, a text gives away."""
    lower = text.lower()
    windows = {lower[at : at + _PIECE] for at in range(len(lower) - _PIECE + 1)}
    return sorted(windows & _PIECES) + ([] if tags else [match[0] for match in _WHOLE_TAG.finditer(text)])


@pytest.mark.parametrize(
    "leak",
    [
        f"secret={SECRET.decode()}",
        f"secret={SECRET[5:20]!r}",
        SECRET.hex().upper(),
        base64.b64encode(b"{" + SECRET).decode(),
        base64.urlsafe_b64encode(_MASTER_KEY).decode(),
        f"{list(_MASTER_KEY)}",
        f"AUTH PLAIN {base64.b64encode(f'{chr(0)}joe{chr(0)}{_PASSWORD}'.encode()).decode()}",
        "to=<prvs=0123abcdef=joe@example.com>",
        "PRVS=0123ABCDEF",
    ],
)
def test_the_search_finds_what_it_looks_for(leak: str) -> None:
    """A search that finds nothing proves nothing unless it can find."""
    assert given_away(f"line before\n{leak}, line after")
    assert not given_away("to=<prvs=0123******=joe@example.com> key=0 Secret(****)")


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop() as hop:
        yield hop


def batv(service: ServiceProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the site of a service."""
    return subprocess.run(
        [sys.executable, "-c", SERVE, "--config", str(service.config), *arguments],
        cwd=service.folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=60,
    )


def _site(folder: Path, next_hop: RecordingNextHop) -> ServiceProcess:
    """Return a service, not yet started, whose rings are sealed."""
    key_file = folder / "master.key"
    key_file.touch(0o600)
    key_file.write_bytes(_MASTER_KEY)
    service = ServiceProcess(
        folder, next_hop.address, '[keys]\nmaster_key_file = "master.key"\n', on_forged="quarantine", code=_FAULTY
    )
    assert batv(service, "key", "seal").returncode == 0
    return service


def test_a_service_writes_no_secret_and_no_whole_tag(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Log and journal are read by many, kept for long and copied to other hosts."""
    with _site(tmp_path, next_hop) as service:
        tag = service.tagged(b"joe@example.com")
        forged = tag.replace(b"=joe@", b"=jim@")
        shown_by_peer = Answer(b"550 5.1.1 <" + tag + b"> is unknown here\r\n")
        content = b"Message-ID: <" + tag + b">\r\n\r\n" + SECRET + b"\r\n"
        with SmtpClient(service.outbound) as client:
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], content).code == 250
            client.mail(tag, [tag], content)
            client.say(b"RSET")
            for line in (b"MAIL FROM:<" + tag + b"> X=" + tag, b"MAIL FROM:<" + tag, tag, b"VRFY " + tag):
                client.say(line)
        with SmtpClient(service.inbound) as client:
            client.say(b"EHLO " + tag)
            shapes = (tag, forged, tag.upper(), b"joe+" + tag, b"@a.example:" + tag, b'"' + tag + b'"@example.com')
            for recipient in (*shapes, b"fault" + tag, tag[:9] + b"zz" + tag[11:], b"prvs=" + tag, tag + b"%x@y"):
                client.mail(b"", [recipient], content)
                client.say(b"RSET")
            client.say(b"RCPT TO:<" + tag + b"> ORCPT=rfc822;" + tag)
            for stage in (Stage.MAIL, Stage.FIRST_RCPT, Stage.DATA, Stage.DOT):
                next_hop.fail(stage, shown_by_peer)
                client.mail(b"", [tag], content)
                client.say(b"RSET")
            next_hop.fail(Stage.MAIL, Answer(tag + b" is no reply\r\n"))
            client.mail(b"", [tag], content)
            next_hop.stop_listening()
            client.say(b"RSET")
            client.mail(b"", [tag], content)
            client.say(b"MAIL FROM:<>")
            client.say(b"RCPT TO:<" + tag + b">")
        _refused_reloads(service, tag)
        service.stop()
        assert service.wait() == 0
        written = service.log, service.journal_path.read_text(encoding="utf-8")
    for text in written:
        assert given_away(text) == []
    for seen in ("verdict=valid", "verdict=bad-signature", "RuntimeError", "reload refused", "key rings not read"):
        assert seen in written[0]
    kept = [path.read_text().partition("Message-ID:") for path in (tmp_path / "var/quarantine/new").iterdir()]
    assert kept
    assert [given_away(head) for head, _, _ in kept if given_away(head)] == []
    files = [("--message", str(path)) for path in (tmp_path / "var/quarantine/new").iterdir()]
    sessions = [("--session", name) for name in {record["session"] for record in service.journal()}]
    for subject in (*files, *sessions):
        for more in ((), ("--json",)):
            said = batv(service, "explain", *subject, *more)
            assert said.returncode == 0, said.stderr
            assert "reason" in said.stdout
            assert given_away(said.stdout + said.stderr) == [], subject


def _refused_reloads(service: ServiceProcess, tag: bytes) -> None:
    """Let the service meet settings and rings that are wrong in ways whose messages could quote what they hold."""
    ring = service.folder / "keys/default.ring"
    good, settings = ring.read_bytes(), service.config.read_text()
    for octets in (good[:-9], ring_octets(service.ring), ring_octets(service.ring)[:-90]):
        at = len(service.log)
        ring.write_bytes(octets)
        service.wait_for_log("key rings not read", after=at)
    for broken in (f"{settings}\n[keys\n", f'{settings}\n[domains."{tag.decode()}"]\n', f"{settings}\n[tags]\nx = 1\n"):
        at = len(service.log)
        service.config.write_text(broken)
        service.reload()
        service.wait_for_log("reload refused", after=at)
    service.config.write_text(settings)
    master_key = service.folder / "master.key"
    for octets in (_MASTER_KEY + b"!", _MASTER_KEY[::-1]):
        at = len(service.log)
        master_key.write_bytes(octets)
        service.reload()
        service.wait_for_log("reload refused", after=at)
    master_key.write_bytes(_MASTER_KEY)
    ring.write_bytes(good)


def test_commands_show_no_secret(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """What a terminal shows ends in tickets and mails; what commands refuse is quoted least carefully."""
    service = _site(tmp_path, next_hop)
    tag = service.tagged(b"joe@example.com").decode()
    weak, long_, taken = tmp_path / "weak", tmp_path / "long", tmp_path / "taken"
    weak.write_bytes(SECRET[:13])
    long_.write_bytes(SECRET * 40)
    taken.touch()
    commands: list[tuple[str, ...]] = [
        ("key", "list"),
        ("key", "list", "--json"),
        ("key", "rotate", "--json"),
        ("key", "import", "--number", "5", "--secret-file", str(weak)),
        ("key", "import", "--number", "5", "--secret-file", str(long_)),
        ("key", "import", "--number", "0", "--secret-file", str(weak), "--allow-weak"),
        ("key", "export", "0", "--out", str(taken)),
        ("key", "export", "0", "--out", str(tmp_path / "out"), "--exim", "--json"),
        ("key", "export", "7", "--out", "-"),
        ("key", "retire", "0"),
        ("key", "revoke", "0"),
        ("key", "seal", "--dry-run"),
        ("config", "check"),
        ("config", "show"),
        ("config", "show", "--json"),
        ("verify", tag),
        ("verify", tag.replace("joe", "jim")),
        ("strip", tag),
        ("sign", "joe@example.com"),
        ("explain", tag),
        ("explain", "joe@example.com"),
        ("key", tag),
    ]
    bounce = tmp_path / "bounce.eml"
    bounce.write_text(
        f"Return-Path: <{tag}>\nTo: <{tag}>, <joe+{tag}>\nFrom: <{tag}>\nIn-Reply-To: <{tag}>\n"
        f"X-Batv-Status: {tag}\nX-{tag}: {SECRET.decode()}\n\nFinal-Recipient: rfc822; {tag}\n{SECRET.decode()}\n"
    )
    told: list[tuple[str, ...]] = [
        ("explain", "--message", str(bounce)),
        ("explain", "--message", str(bounce), "--json"),
        ("explain", "--message", str(tmp_path / "keys/default.ring")),
        ("explain", "--session", tag),
    ]
    for command in told:
        said = batv(service, *command)
        assert said.stdout + said.stderr
        assert given_away(said.stdout + said.stderr) == [], command
    ring = tmp_path / "keys/default.ring"
    for command in commands:
        said = batv(service, *command)
        assert given_away(said.stdout + said.stderr, tags=True) == [], command
        if command[0] in {"key", "config"} and tag not in command:
            assert given_away(said.stdout + said.stderr) == [], command
    for octets in (ring.read_bytes()[:-30], ring_octets(service.ring), ring_octets(service.ring)[:-90]):
        ring.write_bytes(octets)
        for command in (
            ("key", "list"),
            ("key", "rotate"),
            ("sign", "joe@example.com"),
            ("config", "check"),
            ("serve",),
        ):
            said = batv(service, *command)
            assert said.returncode != 0, command
            assert given_away(said.stdout + said.stderr) == [], command


def test_objects_show_no_secret(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """They end in tracebacks, in the messages of asserts and in debuggers."""
    service = _site(tmp_path, next_hop)
    key = Key(0, Secret(SECRET), today())
    tagged = take_off(Mailbox.parse(service.tagged(b"joe@example.com")))
    assert tagged is not None
    site = Site(str(service.config))
    settings = site.settings()
    shown: list[object] = [
        key.secret,
        key,
        service.ring,
        KeyRings(service.ring, {b"example.com": service.ring}),
        site.rings(settings),
        RingStore(tmp_path, Secret(_MASTER_KEY)),
        settings,
        Credentials("joe", _PASSWORD),
        tagged.tag,
    ]
    for each in shown:
        for text in (repr(each), str(each), f"{each}", repr([each])):
            assert given_away(text) == [], type(each)
    with pytest.raises(Exception, match=r".") as caught:
        Credentials("joe", _PASSWORD + "\0")
    assert given_away(repr(caught.value) + str(caught.value)) == []
