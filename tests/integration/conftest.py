"""What tests of the running service share: a next hop that keeps what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.next_hop import RecordingNextHop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture
def next_hop(hop: RecordingNextHop) -> RecordingNextHop:
    """The next hop, which has forgotten what was before."""
    hop.heal()
    hop.forget()
    return hop
