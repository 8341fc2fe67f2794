"""Failed tags are counted by network and recipient, in a memory that does not grow."""

from __future__ import annotations

from typing import Final

import pytest

from batv.address import Mailbox
from batv.guessing import Guessing, network_of, victim

_JOE: Final = b"joe@example.com"
_NETWORK: Final = "192.0.2.0/24"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("::1", "::/48"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_a_client_counts_for_its_network(address: str, network: str) -> None:
    """Whoever has one address has its neighbours."""
    assert network_of(address) == network


@pytest.mark.parametrize(
    "address", [b"joe@example.com", b"JOE@Example.COM", b"prvs=junk=joe@example.com", b'"joe"@example.com']
)
def test_a_recipient_is_one_however_he_is_written(address: bytes) -> None:
    """A guess in another spelling is a guess for the same mailbox."""
    assert victim(Mailbox.parse(address)) == _JOE


def test_a_pair_is_suspect_after_so_many_failures_and_no_other_is() -> None:
    """Neither another recipient, nor another network."""
    guessing = Guessing(3, 60)
    assert [guessing.failed(_NETWORK, _JOE, 0) for _ in range(5)] == [False, False, True, False, False]
    assert guessing.suspect(_NETWORK, _JOE, 0)
    assert not guessing.suspect(_NETWORK, b"ann@example.com", 0)
    assert not guessing.suspect("198.51.100.0/24", _JOE, 0)


def test_failures_that_are_old_do_not_count() -> None:
    """A few mistakes a week are nobody's attack."""
    guessing = Guessing(3, 60)
    for minute in range(10):
        assert not guessing.failed(_NETWORK, _JOE, 61.0 * minute)
        assert not guessing.failed(_NETWORK, _JOE, 61.0 * minute + 30)
    assert not guessing.suspect(_NETWORK, _JOE, 61.0 * 10)


def test_a_pair_is_suspect_for_as_long_as_the_guessing_goes_on() -> None:
    """The window begins anew with each failure then, and ends when it has been quiet for one."""
    guessing = Guessing(2, 60)
    for second in range(0, 600, 50):
        guessing.failed(_NETWORK, _JOE, second)
    assert guessing.suspect(_NETWORK, _JOE, 609.0)
    assert not guessing.suspect(_NETWORK, _JOE, 610.0)
    assert guessing.failed(_NETWORK, _JOE, 620.0) is False


def test_memory_is_of_one_size_and_a_flood_does_not_make_it_forget() -> None:
    """Failures for strangers between the guesses do not help: what takes a place takes over its count."""
    guessing = Guessing(10, 3600, pairs=50)
    for guess in range(10):
        guessing.failed(_NETWORK, _JOE, guess)
        for number in range(500):
            guessing.failed(_NETWORK, b"%d.%d@example.com" % (guess, number), guess)
        assert len(guessing) <= 50
    assert guessing.failed(_NETWORK, _JOE, 11) or guessing.suspect(_NETWORK, _JOE, 11)


def test_the_pair_with_the_fewest_failures_goes_first() -> None:
    """One that is suspect stays while there are others."""
    guessing = Guessing(5, 3600, pairs=10)
    for _ in range(5):
        guessing.failed(_NETWORK, _JOE, 0)
    for number in range(30):
        guessing.failed(_NETWORK, b"%d@example.com" % number, 1)
    assert guessing.suspect(_NETWORK, _JOE, 2)
    assert not guessing.suspect(_NETWORK, b"29@example.com", 2)


def test_a_window_that_is_over_hands_on_no_count() -> None:
    """Yesterday's flood is no reason to suspect anybody today."""
    guessing = Guessing(2, 60, pairs=10)
    for number in range(40):
        guessing.failed(_NETWORK, b"%d@example.com" % number, 0)
    assert guessing.failed(_NETWORK, _JOE, 100) is False
    assert not guessing.suspect(_NETWORK, _JOE, 100)
