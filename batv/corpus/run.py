"""Replays a corpus under a configuration and scores it; and replays it under two, and tells what changes hands."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.config import Endpoint
from batv.corpus.proxies import own_proxy, running_proxy
from batv.corpus.replay import Speed, replay
from batv.corpus.score import Score, score
from batv.corpus.sink import Sink
from batv.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.config import Settings
    from batv.corpus.manifest import Corpus
    from batv.corpus.score import Fate
    from batv.day import Day
    from batv.observe.event import Direction
    from batv.stage import Stage
    from batv.store.rings import RingStore

__all__ = ["Change", "changes", "run_against", "run_own"]

_LOOPBACK: Final = Endpoint(host="127.0.0.1", port=0)


async def run_own(  # noqa: PLR0913 -- what a replay depends on
    corpus: Corpus,
    settings: Settings,
    store: Callable[[Settings], RingStore],
    today: Day,
    *,
    speed: Speed,
    progress: Callable[[int], None],
    stages: Callable[[Settings, Direction], Stage] | None = None,
) -> Score:
    """Replay a corpus against a proxy of our own and return the score.

    Args:
        corpus: what to replay.
        settings: policy, rings and limits of the proxy.
        store: returns the store of the rings.
        today: the day on which the proxy runs if the corpus was not made for one.
        speed: how fast.
        progress: told how many messages are through.
        stages: makes what judges; None for what the product judges with.

    Raises:
        CorpusError, UnavailableError, IoError: as for `replay`.
    """
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(Sink(_LOOPBACK))
        day = corpus.about.day or today
        sent = [entry.answers for entry in corpus.entries if entry.answers is not None]
        proxy = await stack.enter_async_context(own_proxy(settings, store, sink, day, stages=stages, sent=sent))
        begun = time.monotonic()
        results = await replay(corpus, proxy.endpoint, speed, progress)
        seconds = time.monotonic() - begun
        found = score(results, sink, proxy, settings.policy)
        found.seconds = seconds
        return found


async def run_against(  # noqa: PLR0913 -- what a replay depends on
    corpus: Corpus,
    settings: Settings,
    inbound: Endpoint,
    sink_endpoint: Endpoint,
    today: Day,
    *,
    speed: Speed,
    progress: Callable[[int], None],
) -> Score:
    """Replay a corpus against a proxy that runs, with a sink at the address of its next hop.

    Args:
        corpus: what to replay.
        settings: those of the proxy.
        inbound: where it listens.
        sink_endpoint: its next hop.
        today: the day on which it runs.
        speed: how fast.
        progress: told how many messages are through.

    Raises:
        CorpusError: the corpus was made for another day; also as for `replay`.
        UnavailableError: the proxy is not there, or the sink cannot be.
    """
    if corpus.about.day is not None and corpus.about.day != today:
        raise CorpusError(
            f"the corpus {corpus.directory} was made for {corpus.about.day}, and the proxy lives on {today}",
            "make a new one, or leave --inbound out",
        )
    async with Sink(sink_endpoint) as sink:
        proxy = await running_proxy(settings, inbound, sink)
        begun = time.monotonic()
        results = await replay(corpus, proxy.endpoint, speed, progress)
        seconds = time.monotonic() - begun
        found = score(results, sink, proxy, settings.policy)
        found.seconds = seconds
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """One recipient that meets something else under another configuration.

    Attributes:
        before: its fate under the first.
        after: its fate under the second.
    """

    before: Fate
    after: Fate


def changes(before: Score, after: Score) -> list[Change]:
    """Return what changes hands between two replays of the same corpus."""
    return [
        Change(old, new) for old, new in zip(before.fates, after.fates, strict=True) if old.outcome is not new.outcome
    ]
