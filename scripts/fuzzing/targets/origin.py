"""XCLIENT and XFORWARD: a client is who the reference reads, or nobody, and is handed on as the same."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from batv.errors import OriginError
from batv.smtp.origin import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    Origin,
    parse_xclient,
    parse_xforward,
    xclient_commands,
    xforward_commands,
)
from tests.support import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check", "checking"]

_LONGEST_COMMAND: Final = 510
_BEFORE: Final = Origin(address="192.0.2.1", port=25, name="before.example", helo="before", login="before")


def check(octets: bytes) -> None:
    """Read octets as the argument of XCLIENT, and as that of XFORWARD.

    Args:
        octets: what follows the verb and its space.
    """
    told = reference.xclient(octets)
    _check(octets, Origin(), told, parse_xclient, partial(_commands, xclient_commands, XCLIENT_ATTRIBUTES))
    if told is not None and "address" in told:
        told = {"name": "", "login": "", **told}  # another client does not inherit them
    _check(octets, _BEFORE, told, parse_xclient, None)
    told = reference.xforward(octets)
    _check(octets, Origin(), told, parse_xforward, partial(_commands, xforward_commands, XFORWARD_ATTRIBUTES))


def _commands(
    commands: Callable[[Origin, Iterable[bytes]], list[bytes]], offered: Iterable[bytes], origin: Origin
) -> list[bytes]:
    return commands(origin, offered)


def _check(
    octets: bytes,
    before: Origin,
    told: dict[str, str | int | None] | None,
    parse: Callable[[bytes, Origin], Origin],
    commands: Callable[[Origin], list[bytes]] | None,
) -> None:
    try:
        found = parse(octets, before)
    except OriginError:
        assert told is None, f"refused: {told}"
        return
    assert told is not None, f"taken: {found}"
    assert _fields(found) == _fields(before) | told
    if commands is None:
        return
    again = Origin()
    for command in commands(found):
        assert len(command) <= _LONGEST_COMMAND
        assert all(32 <= octet < 127 for octet in command), "a control character"
        again = parse(command.partition(b" ")[2], again)
    # A text may be too long once it is written in our way: then it is unknown.
    for field, value in _fields(again).items():
        assert value in {_fields(found)[field], ""}


def _fields(origin: Origin) -> dict[str, str | int | None]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in asdict(origin).items()}


checking = partial(nullcontext, check)
