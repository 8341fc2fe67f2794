r"""Plays a dialogue: a file that shows both sides of a proxy on one page.

The first line names the proxy and says the rule in a sentence. `@` lines are the heading, other `#` lines remarks::

    # outbound: DSN parameters survive signing, in order and in case
    @ next hop offers DSN
    C: MAIL FROM:<joe@example.com> RET=HDRS ENVID=AbC
    N: MAIL FROM:<{TAG joe@example.com}> RET=HDRS ENVID=AbC
    n: 250 2.1.0 Ok
    C< 250 2.1.0 Ok

| line | is |
|---|---|
| `C: text` | the client says a line; lines that follow each other go in one segment, an empty line parts them |
| `C< text` | the client gets this line |
| `N: text` | the next hop hears this line |
| `n: text` | the next hop answers a line; lines that follow each other go in one segment |
| `C\|`, `C<\|`, `N\|`, `n\|` | the same with raw octets: escapes as in Python, no line end added |
| `N2:`, `n2:` ... | the same on the next hop's second connection, in the order in which they were made |
| `C! close`, `n! close` | the client, or the next hop, closes its connection; `half-close`: says that no more comes |
| `C< (closed)`, `N: (closed)` | the proxy has closed that connection |
| `J: PATH VERDICT DISPOSITION REPLY` | the next line of the journal; the reply's beginning |
| `Q: text` | the one message in quarantine, new since the last `Q`, has this line; `(none)`: there is no message |
| `A: ADDRESS NAME` | the transaction that ended last came from this client, which called itself so in EHLO or HELO |
| `L: text` | the next warning or error in the log says this; `(none)`: there is no further one |

Heading:

- `@ smtp.bare_newlines = "reject"`: any setting, as TOML
- `@ next hop offers SIZE 1000, DSN`: its EHLO keywords; `@ next hop 2 offers ...`: on that connection alone
- `@ next hop speaks LMTP`: and is greeted with LHLO
- `@ next hop is down`; `@ next hop greets by hand`: else each connection is greeted and its EHLO answered
- `@ no key signs`: else key 3 does
- `@ client says HELO`, `@ client says nothing`: else the client hears the greeting, says EHLO and gets the answer

Placeholders:

- `{TAG joe@example.com}`: the address as signed on the fixed day; `{SUBTAG ...}` with the tag behind the user
- `{EXPIRED ...}` as signed long before, `{BADTAG ...}` with a digit changed, `{UNKNOWN ...}` with a key not in the ring
- `{OTHERS joe@example.com ann@example.com}`: the second with the tag of the first
- `{SHORT TAG joe@example.com}`: such a path as journals show it
- `{REPEAT 48 a}`: a run of octets

Nothing else may pass on either side: what was not written fails the dialogue, at the end the latest.
"""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from batv.observe.event import Direction, Level, Notice, TransactionEnded, printable
from batv.tag import shorten
from tests.support.relay import (
    SILENT_RING,
    USUAL,
    Relay,
    World,
    badly_tagged,
    expired,
    merged,
    running,
    signed,
    signed_behind,
    unknown_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Dialogue", "DialogueError", "Step", "parse", "play"]

_SECONDS: Final = 3.0
"""For each step; a dialogue that waits this long has failed."""

_CLOSED: Final = b"(closed)"
_DEFAULT_OFFER: Final = (b"SIZE 10240000", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES", b"PIPELINING")

_TITLE = re.compile(r"# (outbound|inbound): (\S.*)")
_STEP = re.compile(r"([CNnJQAL])([1-9]?)(:|<\||[|<!]) ?(.*)")
_OFFER = re.compile(r"next hop (?:([1-9]) )?offers(?: (.*))?")
_PLACEHOLDER = re.compile(rb"\{([A-Z]+) ([^{}]*)\}")
_KINDS: Final = {"C:", "C|", "C<", "C<|", "C!", "N:", "N|", "n:", "n|", "n!", "J:", "Q:", "A:", "L:"}


class DialogueError(AssertionError):
    """A dialogue did not go as it is written, or is written wrongly."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is said or expected.

    Attributes:
        line: number of its first line in the file.
        kind: who and how: `C:`, `C<`, `C!`, `N:`, `n:`, `n!`, `J:`, `Q:`, `A:` or `L:`.
        octets: what; line ends included.
        connection: which of the next hop's connections, from 1.
    """

    line: int
    kind: str
    octets: bytes
    connection: int = 1


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue as it is written.

    Attributes:
        name: its file, for messages.
        text: all of it.
        direction: which proxy.
        steps: what happens.
        settings: changes of the proxy's settings.
        offers: EHLO keywords of the next hop; by connection, 0 for those not named.
        client: what the client says first: EHLO, HELO or nothing.
        up: whether there is a next hop.
        greets: whether its connections are greeted without being told.
        lmtp: whether it speaks LMTP.
        signs: whether the ring has a key that signs.
    """

    name: str
    text: str
    direction: Direction
    steps: tuple[Step, ...]
    settings: dict[str, Any]
    offers: dict[int, tuple[bytes, ...]]
    client: str = "EHLO"
    up: bool = True
    greets: bool = True
    lmtp: bool = False
    signs: bool = True


def parse(text: str, name: str) -> Dialogue:
    """Return the dialogue that a file holds.

    Raises:
        DialogueError: it is none.
    """
    lines = text.splitlines()
    title = _TITLE.fullmatch(lines[0]) if lines else None
    if title is None:
        raise DialogueError(f"{name}:1: the first line is not '# outbound: sentence' or '# inbound: sentence'")
    heading = _Heading()
    steps: list[Step] = []
    joins = False
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("@ "):
            heading.read(line[2:], f"{name}:{number}")
        elif not line.strip():
            joins = False
        elif not line.startswith("#"):
            step = _step(line, number, name)
            last = steps[-1] if steps else None
            if (
                joins
                and last is not None
                and step.kind in {"C:", "n:"}
                and (last.kind, last.connection) == (step.kind, step.connection)
            ):
                steps[-1] = Step(last.line, last.kind, last.octets + step.octets, last.connection)
            else:
                steps.append(step)
            joins = True
    return Dialogue(
        name,
        text,
        Direction(title[1]),
        tuple(steps),
        heading.settings,
        heading.offers,
        heading.client,
        heading.up,
        heading.greets,
        heading.lmtp,
        heading.signs,
    )


@dataclass(slots=True)
class _Heading:
    settings: dict[str, Any] = field(default_factory=dict)
    offers: dict[int, tuple[bytes, ...]] = field(default_factory=lambda: {0: _DEFAULT_OFFER})
    client: str = "EHLO"
    up: bool = True
    greets: bool = True
    lmtp: bool = False
    signs: bool = True

    def read(self, line: str, place: str) -> None:
        offer = _OFFER.fullmatch(line)
        if offer is not None:
            keywords = [keyword.strip().encode() for keyword in (offer[2] or "").split(",")]
            self.offers[int(offer[1] or 0)] = tuple(keyword for keyword in keywords if keyword)
        elif line == "next hop is down":
            self.up = False
        elif line == "next hop greets by hand":
            self.greets = False
        elif line == "next hop speaks LMTP":
            self.lmtp = True
        elif line == "no key signs":
            self.signs = False
        elif line in {"client says HELO", "client says nothing"}:
            self.client = line.rpartition(" ")[2]
        else:
            try:
                self.settings = merged(self.settings, tomllib.loads(line))
            except tomllib.TOMLDecodeError as error:
                raise DialogueError(f"{place}: no heading and no setting: {error}") from error


def _step(line: str, number: int, name: str) -> Step:
    match = _STEP.fullmatch(line)
    if match is None or match[1] + match[3] not in _KINDS or (match[2] and match[1] not in "Nn"):
        raise DialogueError(f"{name}:{number}: no step of a dialogue: {line}")
    kind, text = match[1] + match[3], match[4]
    octets = _filled(text.encode())
    if kind.endswith("|"):
        octets = octets.decode("unicode_escape").encode("latin-1")
        kind = {"C|": "C:", "C<|": "C<", "N|": "N:", "n|": "n:"}[kind]
    elif kind in {"C:", "C<", "N:", "n:"} and octets != _CLOSED:
        octets += b"\r\n"
    return Step(number, kind, octets, int(match[2] or 1))


def _filled(octets: bytes) -> bytes:
    return _PLACEHOLDER.sub(lambda match: _MAKERS[match[1]](match[2]), octets)


def _repeated(argument: bytes) -> bytes:
    count, _, octets = argument.partition(b" ")
    return octets * int(count)


def _others(argument: bytes) -> bytes:
    """Return the second address with the tag of the first."""
    whose, _, address = argument.partition(b" ")
    return signed(whose).removesuffix(whose) + address


def _short(argument: bytes) -> bytes:
    maker, _, address = argument.partition(b" ")
    return b"<" + shorten(_MAKERS[maker](address).decode()).encode() + b">"


_MAKERS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"OTHERS": _others,
    b"SHORT": _short,
    b"TAG": signed,
    b"SUBTAG": signed_behind,
    b"EXPIRED": expired,
    b"BADTAG": badly_tagged,
    b"UNKNOWN": unknown_key,
    b"REPEAT": _repeated,
}


class _Wire:
    """One end of a connection, as the dialogue sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self) -> bytes:
        """Return the next line, or what came before the connection closed."""
        with suppress(ConnectionError):
            try:
                return await self.reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                return error.partial or _CLOSED
        return _CLOSED

    async def like(self, expected: bytes) -> bytes:
        """Return the next line, or as many octets as are expected, or what came before the connection closed."""
        if expected == _CLOSED or (expected.endswith(b"\r\n") and expected.count(b"\n") == 1):
            return await self.line()
        try:
            return await self.reader.readexactly(len(expected))
        except asyncio.IncompleteReadError as error:
            return error.partial or _CLOSED
        except ConnectionError:
            return _CLOSED

    async def rest(self) -> bytes:
        """Return what comes until the connection closes."""
        rest = b""
        with suppress(ConnectionError):
            while octets := await self.reader.read(65_536):
                rest += octets
        return rest

    def waiting(self) -> bytes:
        """Return what has come and nobody has read."""
        return bytes(self.reader._buffer)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


class _NextHop:
    """The next hop: it says what the dialogue lets it say."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self.wires: list[_Wire] = []
        self._ready: list[asyncio.Event] = []
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        if not self._dialogue.up:
            self._server.close()
        return port

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(reader, writer)
        ready = asyncio.Event()
        self.wires.append(wire)
        self._ready.append(ready)
        number = len(self.wires)
        async with self._changed:
            self._changed.notify_all()
        if self._dialogue.greets:
            offers = self._dialogue.offers.get(number, self._dialogue.offers[0])
            writer.write(b"220 next.example ESMTP\r\n")
            line = await wire.line()
            assert line == (b"LHLO" if self._dialogue.lmtp else b"EHLO") + b" proxy.example\r\n", line
            *before, last = [b"next.example", *offers]
            writer.write(b"".join(b"250-%b\r\n" % keyword for keyword in before) + b"250 %b\r\n" % last)
        ready.set()

    async def wire(self, number: int) -> _Wire:
        """Return a connection, once it is made and greeted."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.wires) >= number)
        await self._ready[number - 1].wait()
        return self.wires[number - 1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for wire in self.wires:
            wire.close()


def play(dialogue: Dialogue, folder: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Play a dialogue with a proxy of its own.

    Args:
        dialogue: what is said.
        folder: an empty folder for what the proxy writes.
        loop_factory: makes the event loop.

    Raises:
        DialogueError: something else was said.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_play(dialogue, folder))


async def _play(dialogue: Dialogue, folder: Path) -> None:
    next_hop = _NextHop(dialogue)
    port = await next_hop.start()
    try:
        world = USUAL if dialogue.signs else World(SILENT_RING)
        settings = dialogue.settings
        if dialogue.lmtp:
            settings = merged(settings, {str(dialogue.direction): {"next_hop": f"lmtp:127.0.0.1:{port}"}})
        async with running(folder, dialogue.direction, port, settings, world) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            player = _Player(dialogue, relay, next_hop, _Wire(reader, writer))
            try:
                await player.play()
            finally:
                player.client.close()
        await player.nothing_more()
    finally:
        next_hop.close()


class _Player:
    def __init__(self, dialogue: Dialogue, relay: Relay, next_hop: _NextHop, client: _Wire) -> None:
        self.client = client
        self._dialogue = dialogue
        self._relay = relay
        self._next_hop = next_hop
        self._line = 1
        self._records: Iterator[dict[str, Any]] | None = None
        self._quarantined: set[Path] = set()
        self._complaints = 0

    async def play(self) -> None:
        if self._dialogue.client != "nothing":
            await self._greet()
        for step in self._dialogue.steps:
            self._line = step.line
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._do(step)
            except TimeoutError:
                self._fail("something within the time", "nothing")
        # Whatever was not written must not come now.
        with suppress(OSError, RuntimeError):
            self.client.writer.write_eof()
        try:
            async with asyncio.timeout(_SECONDS):
                rest = await self.client.rest()
        except TimeoutError:
            rest = b"(nothing, and the connection stays open)"
        if rest:
            self._fail("nothing more for the client", rest)

    async def nothing_more(self) -> None:
        """Check what is left when client and proxy are gone."""
        for number, wire in enumerate(self._next_hop.wires, start=1):
            async with asyncio.timeout(_SECONDS):
                rest = await wire.rest()
            if rest.removesuffix(b"QUIT\r\n"):
                self._fail(f"nothing more on the next hop's connection {number}", rest)
        used = max((step.connection for step in self._dialogue.steps if step.kind[0] in "Nn"), default=1)
        if len(self._next_hop.wires) > used:
            self._fail(f"{used} connections to the next hop", str(len(self._next_hop.wires)))
        if self._records is not None and (record := next(self._records, None)) is not None:
            self._fail("no more records in the journal", str(record))
        if self._relay.errors:
            self._fail("no error of the proxy's own", "\n".join(self._relay.errors))

    async def _greet(self) -> None:
        async with asyncio.timeout(_SECONDS):
            greeting = await self.client.line()
            if not greeting.startswith(b"220 proxy.example "):
                self._fail("220 proxy.example ...", greeting)
            self.client.writer.write(b"%b client.example\r\n" % self._dialogue.client.encode())
            while (line := await self.client.line())[:4] == b"250-":
                pass
            if line[:4] != b"250 ":
                self._fail("250 ...", line)

    async def _do(self, step: Step) -> None:
        match step.kind:
            case "C:":
                self.client.writer.write(step.octets)
            case "C<":
                self._same(step.octets, await self.client.like(step.octets))
            case "C!":
                self._end(self.client, step.octets)
            case "N:":
                wire = await self._next_hop.wire(step.connection)
                self._same(step.octets, await wire.like(step.octets))
            case "n:":
                wire = await self._next_hop.wire(step.connection)
                if early := self.client.waiting():
                    self._fail("no reply before the next hop gave it", early)
                if not self._pipelines(step.connection) and (early := wire.waiting()):
                    self._fail("no command before the reply to the one before", early)
                wire.writer.write(step.octets)
            case "n!":
                self._end(await self._next_hop.wire(step.connection), step.octets)
            case "J:":
                self._recorded(step.octets)
            case "A:":
                self._came_from(step.octets)
            case "L:":
                self._logged(step.octets)
            case _:
                self._in_quarantine(step.octets)

    def _pipelines(self, connection: int) -> bool:
        offers = self._dialogue.offers
        return not self._dialogue.greets or b"PIPELINING" in offers.get(connection, offers[0])

    def _end(self, wire: _Wire, how: bytes) -> None:
        if how == b"half-close":
            wire.writer.write_eof()
        elif how == b"close":
            wire.close()
        elif how == b"reset":
            wire.writer.transport.abort()
        else:
            self._fail("close, half-close or reset", how)

    def _recorded(self, expected: bytes) -> None:
        if self._records is None:
            self._records = _records(self._relay.journal)
        record = next(self._records, None)
        path, verdict, disposition, reply = printable(expected).split(" ", 3)
        if record is None:
            self._fail(expected, "no record")
            return
        got = (record["forward_path"], record["verdict"], record["disposition"], record["reply"][: len(reply)])
        self._same(f"{path} {verdict} {disposition} {reply}".encode(), " ".join(got).encode())

    def _came_from(self, expected: bytes) -> None:
        ended = [event for event in self._relay.events if isinstance(event, TransactionEnded)]
        self._same(expected, f"{ended[-1].client} {ended[-1].helo}".encode() if ended else b"no transaction")

    def _logged(self, expected: bytes) -> None:
        complaints = [
            event
            for event in self._relay.events
            if isinstance(event, Notice) and event.level in {Level.WARNING, Level.ERROR}
        ]
        new = complaints[self._complaints : self._complaints + 1]
        self._complaints += len(new)
        self._same(expected, new[0].what.encode() if new else b"(none)")

    def _in_quarantine(self, expected: bytes) -> None:
        folder = self._relay.quarantine
        messages = set(folder.iterdir()) if folder.is_dir() else set()
        if self._quarantined < messages:
            self._quarantined, new = messages, messages - self._quarantined
        else:
            new = self._quarantined
        if expected == b"(none)":
            self._same(b"0 messages", b"%d messages" % len(messages))
            return
        contents = [message.read_bytes() for message in new]
        if len(contents) != 1 or expected not in contents[0].split(b"\n"):
            self._fail(expected, b"\n".join(contents) or b"no message in quarantine")

    def _same(self, expected: bytes, got: bytes) -> None:
        if got != expected:
            self._fail(expected, got)

    def _fail(self, expected: bytes | str, got: bytes | str) -> None:
        where = f"{self._dialogue.name}:{self._line}"
        shown = self._dialogue.text.splitlines()[self._line - 1]
        heard = "".join(
            f"\n  waiting on connection {number}: {wire.waiting()!r}"
            for number, wire in enumerate(self._next_hop.wires, start=1)
            if wire.waiting()
        )
        events = "".join(f"\n  event: {event}" for event in self._relay.events[-3:])
        raise DialogueError(f"{where}: {shown}\n  expected {expected!r}\n  got      {got!r}{heard}{events}")


def _records(journal: Path) -> Iterator[dict[str, Any]]:
    # Read to the end each time: a record is in the file before the reply that ends the message.
    seen = 0
    while True:
        lines = journal.read_text(encoding="utf-8").splitlines()
        if seen == len(lines):
            return
        yield json.loads(lines[seen])
        seen += 1
