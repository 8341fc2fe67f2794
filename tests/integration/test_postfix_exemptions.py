"""Recipients that are exempt, with real Postfix on both sides: each gets the message once, signed where he should."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.site import Site, running_site
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import EmailMessage

pytestmark = [pytest.mark.mta("postfix"), pytest.mark.timeout(180)]

_JOE: Final = "joe@example.com"
_TAGGED_JOE: Final = r"<prvs=[0-9]{4}[0-9a-f]{6}=joe@example\.com>"
_LIMIT: Final = "batv-out_destination_recipient_limit = 1"
_EXEMPTIONS: Final = """
[[exemptions]]
reason = "a list that knows its senders"
recipients = ["bob@lax.example"]
"""
_QUIET_SECONDS: Final = 3
"""Longer than a message takes from hand to hand, so that a second copy would have come."""


@pytest.fixture(scope="module", params=[_LIMIT, ""], ids=["one-at-a-time", "together"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Give both hosts, with and without the line of main.cf that sends to one recipient at a time."""
    with running_site("master-exempt-recipients.cf", request.param, _EXEMPTIONS) as running:
        yield running


def _message(token: str) -> bytes:
    lines = [f"From: {_JOE}", "To: someone", f"Subject: {token}", f"Message-ID: <{token}@made.example>", "", "Text."]
    return "\r\n".join([*lines, ""]).encode()


def _arrived(site: Site, token: str, count: int) -> dict[str, EmailMessage]:
    """Return the messages by recipient, once there are so many; whatever Postfix puts off is tried at once."""
    bob, joe = site.remote.maildir("bob"), site.home.maildir("joe")

    def look() -> list[EmailMessage]:
        found = [*bob.holding(token), *joe.holding(token)]
        if len(found) < count and "4.5.3" in site.home.queued():
            site.home.flush()
        return found if len(found) >= count else []

    until(look, f"{count} messages with {token}")
    until(lambda: "empty" in site.home.queued(), "an empty queue")
    quiet = time.monotonic() + _QUIET_SECONDS
    until(lambda: time.monotonic() > quiet, "whatever comes late")
    found = [*bob.holding(token), *joe.holding(token)]
    assert len(found) == count
    by_recipient = {str(message["Delivered-To"]): message for message in found}
    assert len(by_recipient) == count
    return by_recipient


@pytest.mark.parametrize(
    "recipients",
    [
        ["bob@lax.example", "bob@strict.example", _JOE],
        ["bob@strict.example", _JOE, "bob@lax.example"],
    ],
    ids=["exempt-first", "exempt-last"],
)
@pytest.mark.parametrize("way", ["submission", "sendmail"])
def test_each_recipient_gets_the_message_once_and_as_he_should(site: Site, way: str, recipients: list[str]) -> None:
    """Nothing is lost and nothing comes twice, whichever kind the first recipient is of."""
    token = f"token-{way}-{recipients[0].partition('@')[2]}"
    if way == "submission":
        with site.submission() as client:
            assert client.sendmail(_JOE, recipients, _message(token)) == {}
    else:
        site.home.sendmail(_message(token).replace(b"\r\n", b"\n"), "-i", "-f", _JOE, *recipients)
    found = _arrived(site, token, 3)
    assert found["bob@lax.example"]["Return-Path"] == f"<{_JOE}>"
    assert re.fullmatch(_TAGGED_JOE, found["bob@strict.example"]["Return-Path"])
    taken = [
        entry
        for entry in site.proxies.journal(direction="outbound", message_id=f"<{token}@made.example>")
        if entry["reply"].startswith("250")
    ]
    assert sorted(entry["forward_path"] for entry in taken) == sorted(f"<{each}>" for each in recipients)
    for entry in taken:
        exempt = entry["forward_path"] == "<bob@lax.example>"
        assert entry["verdict"] == ("unsigned" if exempt else "signed")
        assert entry["reason"].startswith("unsigned: exempt: a list that knows its senders" if exempt else "signed")


def test_a_bounce_of_mail_that_waited_comes_home(site: Site) -> None:
    """The recipient who is not exempt has the tagged address to answer to."""
    with site.submission() as client:
        assert client.sendmail(_JOE, ["nobody@lax.example"], _message("token-of-a-bounce")) == {}
    bounce = site.home.maildir("joe").wait_for("token-of-a-bounce")
    assert bounce["Return-Path"] == "<>"
