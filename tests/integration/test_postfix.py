"""The recipe in scripts/mta/postfix with real Postfix on both sides: real queues, real bounces, real mailboxes."""

from __future__ import annotations

import re
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.support.site import Site, running_site

if TYPE_CHECKING:
    import smtplib
    from collections.abc import Iterator
    from email.message import EmailMessage

pytestmark = [pytest.mark.mta("postfix"), pytest.mark.timeout(180)]

_JOE: Final = "joe@example.com"
_TAGGED_JOE: Final = r"prvs=[0-9]{4}[0-9a-f]{6}=joe@example\.com"
_STRIP_MAP: Final = Path(__file__).parents[2] / "scripts/mta/postfix/batv-strip"
_FLOOD: Final = 150
_FLOOD_SECONDS: Final = 30
"""Far more than a flood takes that nobody delays; Postfix's own delays, a second each, would sum up to more."""

_numbers = count(1)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Give both hosts with the proxies of one of them."""
    with running_site() as running:
        yield running


@pytest.fixture
def token() -> str:
    """Give a word that stands in no other test's messages."""
    return f"token-{next(_numbers)}-of-this-test"


def _message(token: str, sender: str = _JOE) -> bytes:
    lines = [f"From: {sender}", "To: someone", f"Subject: {token}", f"Message-ID: <{token}@made.example>", "", "Text."]
    return "\r\n".join([*lines, ""]).encode()


class _Asked(NamedTuple):
    """Parameters of MAIL and of RCPT."""

    mail: tuple[str, ...] = ()
    rcpt: tuple[str, ...] = ()


_NOTHING_ASKED: Final = _Asked()


def _send(client: smtplib.SMTP, token: str, sender: str, recipient: str, asked: _Asked = _NOTHING_ASKED) -> None:
    """Hand a message over, each step of it accepted."""
    with client:
        client.ehlo_or_helo_if_needed()
        assert client.mail(sender, asked.mail)[0] == 250
        assert client.rcpt(recipient, asked.rcpt)[0] == 250
        assert client.data(_message(token, sender or "Mailer <mailer@remote.example>"))[0] == 250


def _submit(site: Site, way: str, token: str, recipient: str) -> None:
    if way == "submission":
        _send(site.submission(), token, _JOE, recipient)
    elif way == "smtp":
        _send(site.local(), token, _JOE, recipient)
    else:
        site.home.sendmail(_message(token).replace(b"\r\n", b"\n"), "-i", "-f", _JOE, recipient)


def _status(bounce: EmailMessage) -> str:
    """Return the fields of a delivery status notification, those of the message and those of its recipient."""
    assert bounce.get_content_type() == "multipart/report"
    (status,) = (part for part in bounce.walk() if part.get_content_type() == "message/delivery-status")
    return status.as_string()


@pytest.mark.parametrize("way", ["submission", "sendmail", "smtp"])
class TestBouncesOfSubmittedMail:
    """Whoever sends mail by this host learns when it was not delivered."""

    def test_a_bounce_that_the_remote_host_sends_later_comes_home(self, site: Site, token: str, way: str) -> None:
        """The remote host took the message, its bounce comes to the MX with the tag and lands in the bare mailbox."""
        _submit(site, way, token, "nobody@lax.example")
        bounce = site.home.maildir("joe").wait_for(token)
        assert "Reporting-MTA: dns; mail.remote.example" in _status(bounce)
        assert re.search(r"Final-Recipient: rfc822; ?nobody@lax\.example", _status(bounce))
        assert (bounce["Return-Path"], bounce["Delivered-To"]) == ("<>", _JOE)
        entry = site.proxies.wait_for_journal(direction="inbound", message_id=bounce["Message-ID"])
        assert (entry["verdict"], entry["disposition"]) == ("valid", "rewrite")

    def test_a_bounce_that_this_host_makes_itself_comes_home(self, site: Site, token: str, way: str) -> None:
        """The remote host refuses the recipient in the session: the bounce never leaves this host."""
        _submit(site, way, token, "nobody@strict.example")
        bounce = site.home.maildir("joe").wait_for(token)
        assert "Reporting-MTA: dns; mail.example.com" in _status(bounce)
        assert re.search(r"Final-Recipient: rfc822; ?nobody@strict\.example", _status(bounce))
        assert re.fullmatch(_TAGGED_JOE, bounce["X-Original-To"])
        assert bounce["Delivered-To"] == _JOE

    def test_the_recipient_gets_the_message_with_a_tagged_return_path(self, site: Site, token: str, way: str) -> None:
        """Only the envelope is signed: the author that people see stays the same."""
        _submit(site, way, token, "bob@strict.example")
        message = site.remote.maildir("bob").wait_for(token)
        assert re.fullmatch(f"<{_TAGGED_JOE}>", message["Return-Path"])
        assert message["From"] == _JOE
        assert "prvs=" not in message.as_string().replace(message["Return-Path"], "")


def test_a_bounce_of_what_cron_sends_comes_home(site: Site, token: str) -> None:
    """Cron calls sendmail without naming a sender: the mail is root's of this host."""
    site.home.sendmail(f"Subject: {token}\n\nCron's output\n".encode(), "-i", "nobody@lax.example")
    bounce = site.home.maildir("joe").wait_for(token)
    assert "Reporting-MTA: dns; mail.remote.example" in _status(bounce)
    assert re.fullmatch(r"prvs=[0-9]{4}[0-9a-f]{6}=root@example\.com", bounce["To"])


def test_a_bounce_of_a_forgery_is_discarded_and_journalled(site: Site, token: str) -> None:
    """Somebody sent mail in joe's name from elsewhere: joe sees no bounce, and the remote host gets rid of it."""
    _send(site.lax_mx(), token, _JOE, "nobody@lax.example")
    site.remote.wait_for_log(r"to=<joe@example\.com>, .* status=sent \(250 2\.0\.0")
    entry = site.proxies.wait_for_journal(direction="inbound", forward_path=f"<{_JOE}>", disposition="discard")
    assert (entry["verdict"], entry["client"]) == ("untagged", "127.0.0.2")
    _send(site.mx(), f"after-{token}", "carol@remote.example", _JOE)
    site.home.maildir("joe").wait_for(f"after-{token}")
    assert [message["Subject"] for message in site.home.maildir("joe").holding(token)] == [f"after-{token}"]
    assert "empty" in site.remote.queued()


def test_a_genuine_bounce_sent_again_to_the_plain_address_is_discarded(site: Site, token: str) -> None:
    """The tag decides, not the content: the very octets that were delivered to the tag are not delivered without it."""
    _submit(site, "submission", token, "nobody@lax.example")
    genuine = site.home.maildir("joe").wait_for(token)
    for name in ("Return-Path", "Delivered-To", "X-Original-To", "Received"):
        del genuine[name]
    with site.mx() as client:
        client.ehlo()
        assert client.mail("")[0] == 250
        assert client.rcpt(_JOE)[0] == 250
        assert client.data(genuine.as_bytes())[0] == 250
    entries = site.proxies.journal(direction="inbound", message_id=genuine["Message-ID"])
    assert [(entry["verdict"], entry["disposition"]) for entry in entries] == [
        ("valid", "rewrite"),
        ("untagged", "discard"),
    ]
    _send(site.mx(), f"after-{token}", "carol@remote.example", _JOE)
    site.home.maildir("joe").wait_for(f"after-{token}")
    assert len(site.home.maildir("joe").holding(token)) == 2


class TestDeliveryStatusParameters:
    """RFC 3461's parameters reach the remote host, which acts on each of them."""

    def test_ret_envid_and_orcpt_come_back_in_the_bounce(self, site: Site, token: str) -> None:
        """Case and encoded characters of the parameters are kept."""
        asked = _Asked(
            ("RET=HDRS", "ENVID=Order+2BNo.7"), ("NOTIFY=FAILURE", "ORCPT=rfc822;Sales+2BEast@Lists.Example")
        )
        _send(site.submission(), token, _JOE, "nobody@lax.example", asked)
        bounce = site.home.maildir("joe").wait_for(token)
        assert "Reporting-MTA: dns; mail.remote.example" in _status(bounce)
        assert "Original-Envelope-Id: Order+No.7" in _status(bounce)
        assert re.search(r"Original-Recipient: rfc822; ?Sales\+East@Lists\.Example", _status(bounce))
        returned = [part.get_content_type() for part in bounce.walk()][-1]
        assert returned == "text/rfc822-headers"

    def test_whoever_asks_for_it_is_told_of_success(self, site: Site, token: str) -> None:
        """NOTIFY=SUCCESS: the notice of delivery has a null sender, and comes home as a bounce does."""
        _send(site.submission(), token, _JOE, "bob@lax.example", _Asked(("RET=FULL",), ("NOTIFY=SUCCESS",)))
        notice = site.home.maildir("joe").wait_for(token)
        assert "Reporting-MTA: dns; mail.remote.example" in _status(notice)
        assert "Action: delivered" in _status(notice)

    def test_whoever_asks_for_no_bounce_gets_none(self, site: Site, token: str) -> None:
        """NOTIFY=NEVER."""
        _send(site.submission(), token, _JOE, "nobody@lax.example", _Asked(rcpt=("NOTIFY=NEVER",)))
        queue_id = site.remote.wait_for_log(rf"(\w+): message-id=<{token}@made\.example>")[1]
        site.remote.wait_for_log(rf"{queue_id}: removed")
        assert re.search(rf"{queue_id}: to=.* status=bounced", site.remote.log())
        assert f"{queue_id}: sender non-delivery" not in site.remote.log()

    def test_programs_of_this_host_may_use_them_too(self, site: Site, token: str) -> None:
        """What `sendmail -R -V -N` asks for."""
        message = _message(token).replace(b"\r\n", b"\n")
        options = ["-R", "hdrs", "-V", "Night.Job", "-N", "failure"]
        site.home.sendmail(message, "-i", "-f", _JOE, *options, "nobody@lax.example")
        bounce = site.home.maildir("joe").wait_for(token)
        assert "Reporting-MTA: dns; mail.remote.example" in _status(bounce)
        assert "Original-Envelope-Id: Night.Job" in _status(bounce)
        assert [part.get_content_type() for part in bounce.walk()][-1] == "text/rfc822-headers"


class TestTheMx:
    """What strangers are told, in the session."""

    @pytest.mark.parametrize("sender", ["", "carol@remote.example"])
    @pytest.mark.parametrize("tagged", [True, False])
    def test_an_unknown_user_is_refused_with_a_tag_and_without(self, site: Site, sender: str, tagged: bool) -> None:  # noqa: FBT001 -- a parameter
        """Neither a tag nor a forged bounce makes the host a catch-all."""
        unknown = "nobody@example.com"
        with site.mx() as client:
            client.ehlo()
            assert client.mail(sender)[0] == 250
            code, text = client.rcpt(site.proxies.command("sign", unknown) if tagged else unknown)
        assert (code, text[:5]) == (550, b"5.1.1")

    def test_ordinary_mail_arrives(self, site: Site, token: str) -> None:
        """Mail that is no bounce needs no tag."""
        _send(site.mx(), token, "carol@remote.example", _JOE)
        message = site.home.maildir("joe").wait_for(token)
        assert message["Return-Path"] == "<carol@remote.example>"

    def test_the_log_names_the_client_behind_the_proxy_too(self, site: Site, token: str) -> None:
        """Whoever looks for a message by its queue id finds who sent it."""
        _send(site.mx(), token, "carol@remote.example", _JOE)
        queue_id = site.home.wait_for_log(rf"(\w+): message-id=<{token}@made\.example>")[1]
        assert re.search(rf"{queue_id}: client=.*, orig_client=unknown\[127\.0\.0\.2\]", site.home.log())

    def test_an_answer_to_a_tagged_address_arrives(self, site: Site, token: str) -> None:
        """Some programs answer to the return path, as a person who writes."""
        _send(site.mx(), token, "carol@remote.example", site.proxies.command("sign", _JOE))
        assert site.home.maildir("joe").wait_for(token)["Delivered-To"] == _JOE

    def test_a_bounce_to_a_tag_behind_a_plus_sign_arrives(self, site: Site, token: str) -> None:
        """The placement `subaddress`: the recipe takes off both forms."""
        tag = site.proxies.command("sign", _JOE)[len("prvs=") :][:10]
        _send(site.mx(), token, "", f"joe+prvs={tag}@example.com")
        assert site.home.maildir("joe").wait_for(token)["Delivered-To"] == _JOE

    @pytest.mark.parametrize("recipient", ["ann@example.com", "forward@example.com"])
    def test_what_a_stranger_sends_in_our_name_is_not_signed(self, site: Site, token: str, recipient: str) -> None:
        """Else anybody could have tags made, by an address that is forwarded to the outside."""
        _send(site.mx(), token, _JOE, recipient)
        arrived = site.home.maildir("ann") if recipient.startswith("ann") else site.remote.maildir("bob")
        assert arrived.wait_for(token)["Return-Path"] == f"<{_JOE}>"

    def test_a_stranger_may_not_relay(self, site: Site) -> None:
        """The proxies connect from this host, to whom relaying is allowed: a stranger gains nothing by it."""
        with site.mx() as client:
            client.ehlo()
            client.mail("carol@remote.example")
            _, text = client.rcpt("bob@strict.example")
        assert b"Relay access denied" in text

    def test_nobody_may_relay_by_it_not_even_the_host_itself(self, site: Site) -> None:
        """Whom Postfix would let relay is refused by the proxy: such clients move to submission first."""
        with site.mx("127.0.0.1") as client:
            client.ehlo()
            client.mail("carol@remote.example")
            code, text = client.rcpt("bob@strict.example")
        assert (code, text) == (550, b"5.7.1 Relaying denied")


@pytest.mark.parametrize(("recipient", "expected"), [(_JOE, 250), ("nobody@example.com", 550)])
def test_a_flood_of_forged_bounces_delays_nobody(site: Site, token: str, recipient: str, expected: int) -> None:
    """Recipients asked about and given up count as errors, or as mail that is not delivered, to a plain Postfix."""
    begin = time.monotonic()
    for _ in range(_FLOOD):
        with site.inbound() as client:
            client.ehlo()
            assert client.mail("")[0] == 250
            code = client.rcpt(recipient)[0]
            if code == 250:
                code = client.data(_message(token))[0]
            assert code == expected
    _send(site.mx(), f"after-{token}", "carol@remote.example", _JOE)
    site.home.maildir("joe").wait_for(f"after-{token}")
    assert time.monotonic() - begin < _FLOOD_SECONDS


@pytest.mark.parametrize("variant", ["master-postscreen.cf", "master-after-queue.cf"])
def test_the_variants_for_port_25_tell_bounces_apart_too(token: str, variant: str) -> None:
    """With postscreen, or with milters that read messages, port 25 is wired in another way."""
    with running_site(variant) as site:
        _submit(site, "submission", f"genuine-{token}", "nobody@lax.example")
        site.home.maildir("joe").wait_for(f"genuine-{token}")
        _send(site.mx(), f"forged-{token}", "", _JOE)
        entry = site.proxies.wait_for_journal(forward_path=f"<{_JOE}>", verdict="untagged", disposition="discard")
        assert entry["client"] == "127.0.0.2"
        _send(site.mx(), f"ordinary-{token}", "carol@remote.example", _JOE)
        site.home.maildir("joe").wait_for(f"ordinary-{token}")
        assert not site.home.maildir("joe").holding(f"forged-{token}")
        with site.mx() as client:
            client.ehlo()
            client.mail("")
            assert client.rcpt("nobody@example.com")[0] == 550


def test_the_map_takes_tags_off_for_each_domain_that_is_named(tmp_path: Path) -> None:
    """The pair of lines for a second domain works as it stands, and no other domain is touched."""
    strip = tmp_path / "batv-strip"
    strip.write_text(re.sub(r"(?m)^#(?=/)", "", _STRIP_MAP.read_text()))
    stripped = {
        "prvs=0790a1b2c3=joe@example.com": "joe@example.com",
        "prvs=0790a1b2c3=joe@example.org": "joe@example.org",
        "joe+prvs=0790a1b2c3@example.org": "joe@example.org",
        "prvs=0790a1b2c3=joe@example.net": "",
        "prvs=0790a1b2c3=joe@example.org.example.net": "",
    }
    for address, bare in stripped.items():
        asked = subprocess.run(
            ["/usr/sbin/postmap", "-q", address, f"regexp:{strip}"], capture_output=True, text=True, check=False
        )
        assert (asked.stdout.strip(), asked.stderr) == (bare, ""), address


def test_an_automatic_reply_between_two_local_users_is_delivered(site: Site, token: str) -> None:
    """The reply has a null sender, goes to the tag that the message came with, and never leaves the host."""
    _send(site.submission(), f"question-{token}", _JOE, "ann@example.com")
    return_path = site.home.maildir("ann").wait_for(f"question-{token}")["Return-Path"].strip("<>")
    assert re.fullmatch(_TAGGED_JOE, return_path)
    reply = _message(f"absent-{token}", "ann@example.com").replace(b"\r\n", b"\n")
    site.home.sendmail(reply, "-i", "-f", "<>", return_path)
    assert site.home.maildir("joe").wait_for(f"absent-{token}")["Delivered-To"] == _JOE
