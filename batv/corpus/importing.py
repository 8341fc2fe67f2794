"""Makes a corpus of an administrator's own messages: a Maildir, an mbox, or a folder of .eml files.

Envelopes come from Return-Path, Delivered-To and X-Original-To where the messages have them, else from what a bounce
without them would have: a null sender, and the address in To. What should become of them is left open.

Source: RFC 5321 section 4.4 (Return-Path); RFC 4155 (mbox).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import policy
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, Final

from batv.address import DOMAIN, LOCAL_PART
from batv.corpus.manifest import IMPORTED, About, Entry, Recipient
from batv.errors import CorpusError, IoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message
    from pathlib import Path

    from batv.corpus.manifest import CorpusWriter

__all__ = ["Imported", "import_messages"]

_MAILBOX: Final = re.compile(LOCAL_PART + rb"@" + DOMAIN)
_FROM_LINE: Final = re.compile(rb"(?m)^From [^\n]*\n")
_CLIENT: Final = "127.90.0.1"


@dataclass(frozen=True, slots=True)
class Imported:
    """What was imported.

    Attributes:
        messages: how many.
        passed_over: files that are no message with a recipient, and why.
    """

    messages: int
    passed_over: dict[str, str]


def import_messages(writer: CorpusWriter, source: Path, progress: Callable[[int], None]) -> Imported:
    """Make a corpus of the messages in a folder or file, and commit it.

    Args:
        writer: where they go.
        source: a Maildir, a file in mbox format, or a folder in which files end with `.eml`.
        progress: told how many messages are in.

    Raises:
        CorpusError: there is no message.
        IoError: the source cannot be read.
        CannotCreateError: the corpus cannot be written.
    """
    count = 0
    passed_over = {}
    try:
        for name, octets in _messages(source):
            entry = _entry(octets)
            if entry is None:
                passed_over[name] = "no address that it was for"
                continue
            writer.add(entry, octets)
            count += 1
            progress(count)
    except OSError as error:
        raise IoError(
            f"cannot read {source}: {(error.strerror or '').lower()}", "look into it and try again"
        ) from error
    if not count:
        raise CorpusError(f"there is no message in {source}", "name a Maildir, an mbox file or a folder of .eml files")
    writer.commit(About(None))
    return Imported(count, passed_over)


def _messages(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_file():
        yield from _mbox(source)
        return
    if (source / "cur").is_dir() or (source / "new").is_dir():
        paths = [path for folder in ("new", "cur") for path in sorted((source / folder).glob("[!.]*"))]
    else:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() == ".eml")
        if not source.is_dir():
            raise CorpusError(f"there is no {source}", "name a Maildir, an mbox file or a folder of .eml files")
    for path in paths:
        if path.is_file():
            yield path.name, _with_crlf(path.read_bytes())


def _mbox(source: Path) -> Iterator[tuple[str, bytes]]:
    octets = source.read_bytes().replace(b"\r\n", b"\n")
    # A line that begins with "From " inside a message is quoted with ">"; one quote is taken off again.
    starts = [
        match
        for match in _FROM_LINE.finditer(octets)
        if match.start() == 0 or octets[: match.start()].endswith(b"\n\n")
    ]
    if not starts or starts[0].start() != 0:
        raise CorpusError(f"{source} is no mbox file", "name a Maildir, an mbox file or a folder of .eml files")
    ends = [match.start() for match in starts[1:]] + [len(octets)]
    for number, (match, end) in enumerate(zip(starts, ends, strict=True), start=1):
        message = re.sub(rb"(?m)^>(>*From )", rb"\1", octets[match.end() : end]).removesuffix(b"\n")
        yield f"{source.name} message {number}", _with_crlf(message)


def _with_crlf(octets: bytes) -> bytes:
    """Return a message as it came over the wire: stores keep LF, so that is what is turned back."""
    octets = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return _FROM_LINE.sub(b"", octets, count=1) if octets.startswith(b"From ") else octets


def _entry(octets: bytes) -> Entry | None:
    header = BytesHeaderParser(policy=policy.compat32).parsebytes(octets)
    recipients = _addresses(header, "Delivered-To")[:1] or _addresses(header, "X-Original-To")[:1]
    recipients = recipients or _addresses(header, "Envelope-To") or _addresses(header, "To")
    if not recipients:
        return None
    senders = _addresses(header, "Return-Path")
    sender = f"<{senders[0]}>" if senders else "<>"
    parameters = "" if octets.isascii() else "BODY=8BITMIME"
    unique = dict.fromkeys(recipients)
    return Entry(
        "",
        IMPORTED,
        "",
        _CLIENT,
        "import.example",
        sender,
        parameters,
        tuple(Recipient(f"<{each}>") for each in unique),
    )


def _addresses(header: Message, field: str) -> list[str]:
    found = []
    for value in header.get_all(field, []):
        text = str(value).encode("utf-8", "surrogateescape")
        found += [match[0].decode() for match in _MAILBOX.finditer(text) if match[0].isascii()]
    return found
