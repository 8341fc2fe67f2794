"""Makes a corpus from a seed: the same seed, ground and weights give the same octets, on any day and machine.

Each message has a generator of its own, made from the seed and its place, so that it depends on no other.
"""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final

from batv.corpus.classes import CLASSES, CLIENTS, Scene
from batv.corpus.manifest import About, Outcome
from batv.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batv.corpus.classes import Kind
    from batv.corpus.ground import Ground
    from batv.corpus.manifest import CorpusWriter, Entry

__all__ = ["generate", "shares"]

BARE: Final = re.compile(rb"[\r\n\0]")


def generate(  # noqa: PLR0913 -- what a corpus depends on
    writer: CorpusWriter,
    ground: Ground,
    *,
    count: int,
    seed: str,
    weights: Mapping[str, float],
    progress: Callable[[int], None],
) -> About:
    """Make the messages of a corpus and commit it.

    Args:
        writer: where they go.
        ground: the site that they are for.
        count: how many.
        seed: what they are made from.
        weights: weights of classes that are not to have their usual one; 0 leaves a class out.
        progress: told how many messages are made.

    Returns:
        How it was made: the classes that this site cannot have are named there.

    Raises:
        CorpusError: no class is left.
        CannotCreateError: the corpus cannot be written.
    """
    left_out = {name: why for name, kind in CLASSES.items() if (why := kind.lacks(ground)) is not None}
    weighed = {
        kind: weights.get(name, kind.weight)
        for name, kind in CLASSES.items()
        if name not in left_out and weights.get(name, kind.weight) > 0
    }
    if not weighed:
        raise CorpusError("no class of messages is left", "give one a weight above 0")
    places = [kind for kind, share in shares(weighed, count).items() for _ in range(share)]
    Random(f"{seed}/order").shuffle(places)
    made: dict[Kind, int] = dict.fromkeys(weighed, 0)
    for serial, kind in enumerate(places, start=1):
        rng = Random(f"{seed}/{serial}")
        scene = Scene(ground, rng, made[kind], serial, rng.choice(CLIENTS))
        made[kind] += 1
        entry, message = kind.make(scene)
        if ground.refuses_bare_newlines and message is not None:
            entry = _refused_for_newlines(entry, message)
        writer.add(entry, message)
        progress(serial)
    about = About(ground.day, seed, left_out)
    writer.commit(about)
    return about


def shares(weights: Mapping[Kind, float], count: int) -> dict[Kind, int]:
    """Return how many messages each class gets: by weight, but each at least one where there are enough."""
    least = 1 if count >= len(weights) else 0
    total = sum(weights.values())
    exact = {kind: least + (count - least * len(weights)) * weight / total for kind, weight in weights.items()}
    found = {kind: int(share) for kind, share in exact.items()}
    by_rest = sorted(weights, key=lambda kind: (found[kind] - exact[kind], kind.name))
    for kind in by_rest[: count - sum(found.values())]:
        found[kind] += 1
    return found


def _refused_for_newlines(entry: Entry, message: bytes) -> Entry:
    """Return what is expected where bare newlines are refused: of a message that goes on to nobody, nothing else."""
    arriving = {Outcome.DELIVERED, Outcome.MARKED}
    bare = BARE.search(message.replace(b"\r\n", b"")) is not None
    if not bare or not any(recipient.outcome in arriving for recipient in entry.recipients):
        return entry
    recipients = (
        replace(each, outcome=Outcome.REJECTED, next_hop_path="", why=f"{each.why}; but bare newlines are refused")
        for each in entry.recipients
    )
    return replace(entry, recipients=tuple(recipients))
