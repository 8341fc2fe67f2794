"""Replies of a next hop: the same ones however the octets come, and nothing behind what is none."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from batv.errors import ReplyError
from batv.smtp.extension import Capabilities
from batv.smtp.reply import Reply, ReplyParser
from scripts.fuzzing.pieces import ways
from tests.support import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check", "checking"]

_MEBIBYTE: Final = 1_048_576


def check(octets: bytes) -> None:
    """Read octets as replies.

    Args:
        octets: what a next hop says.
    """
    wanted, broken = reference.replies(octets)
    for pieces in ways(octets):
        found, found_broken = _read(pieces)
        assert [(reply.code, reply.texts) for reply in found] == wanted
        assert found_broken == broken
    for reply in [Reply(code, texts) for code, texts in wanted]:
        assert reference.replies(reply.octets) == ([(reply.code, reply.texts)], False), "not sent as it was read"
        assert [reply.positive, reply.intermediate, reply.transient, reply.permanent].count(True) == 1
        _check_offered(Capabilities.of(reply))


def _read(pieces: Sequence[bytes]) -> tuple[list[Reply], bool]:
    """Return the replies, and whether something that is no reply came behind them."""
    parser = ReplyParser()
    found: list[Reply] = []
    try:
        for piece in pieces:
            for reply in parser.feed(piece):
                found.append(reply)  # noqa: PERF402 -- one that came before an error counts
    except ReplyError:
        return found, True
    return found, False


def _check_offered(capabilities: Capabilities) -> None:
    for line in capabilities.offered(_MEBIBYTE, 100):
        keyword, _, value = line.partition(b" ")
        if keyword == b"SIZE":
            assert 0 < int(value) <= _MEBIBYTE
        else:
            assert keyword == b"PIPELINING" or keyword in capabilities


checking = partial(nullcontext, check)
