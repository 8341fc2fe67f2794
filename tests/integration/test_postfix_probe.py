"""`batv probe` between two real Postfix hosts: the recipe's site, and one whose bounce comes later, or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.site import running_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.site import Site

pytestmark = pytest.mark.mta("postfix")

_PROBE: Final = '[probe]\nsender = "ann+*@example.com"\nrecipient = "nobody@{}.example"\nwait_seconds = {}\n'


def _site(remote: str, wait_seconds: int) -> Iterator[Site]:
    with running_site(main="recipient_delimiter = +", more=_PROBE.format(remote, wait_seconds)) as site:
        yield site


@pytest.fixture
def lax() -> Iterator[Site]:
    """A site that probes with a host which takes mail for anybody."""
    yield from _site("lax", 60)


@pytest.fixture
def strict() -> Iterator[Site]:
    """A site that probes with a host which refuses unknown users at once."""
    yield from _site("strict", 2)


def test_the_bounce_of_another_host_comes_home(lax: Site) -> None:
    """Handed to a proxy that signs only what was submitted; bounced by the other host, and delivered to the user."""
    found = json.loads(lax.proxies.command("probe", "--json"))
    assert (found["loop"], found["reason"]) == ("works", "the bounce came home")
    entry = lax.proxies.journal(direction="inbound", verdict="valid")[-1]
    assert entry["client"] == "127.0.0.2"
    bounce = lax.home.maildir("ann").wait_for(found["sender"])
    assert bounce["Delivered-To"] == found["sender"]
    assert bounce.get_content_type() == "multipart/report"
    assert [each["disposition"] for each in lax.proxies.journal(verdict="untagged")] == ["discard"]


def test_a_bounce_that_this_host_makes_itself_proves_nothing(strict: Site) -> None:
    """It is delivered, but never leaves the host: whether the way through the MX works it cannot tell."""
    found = json.loads(strict.proxies.command("probe", "--json", status=1))
    assert (found["loop"], found["reason"]) == ("broken", "bounce: none came home within 2 s")
    assert strict.home.maildir("ann").wait_for(found["sender"]).get_content_type() == "multipart/report"
