"""A corpus on disk: a folder with `corpus.json`, `manifest.jsonl` and the messages.

`corpus.json` says how the corpus was made: format, the day (UTC) for which addresses were signed, seed, and the classes
that were left out, each with the reason. `manifest.jsonl` has one JSON object a line for each message: its file, class,
envelope, and for each recipient the verdict and disposition that are expected, the outcome that a sender and the next
hop can see, and why. Where a message was not made by us, what is expected is left open (null).

The addresses hold live tags, which are bearer credentials: folder and files are for their owner only. A corpus is
built beside its place and gets its name when it is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Self

from batv.address import NULL_REVERSE_PATH, ForwardPath, ReversePath
from batv.day import Day
from batv.errors import AddressError, CannotCreateError, CorpusError, DayError, IoError
from batv.smtp.path import parse_mail, parse_rcpt
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

__all__ = [
    "IMPORTED",
    "About",
    "Answered",
    "Corpus",
    "CorpusWriter",
    "Ending",
    "Entry",
    "Outcome",
    "Recipient",
    "read_corpus",
]

IMPORTED: Final = "imported"
"""Class of messages that an administrator brought along."""

_FORMAT: Final = 1
_ABOUT: Final = "corpus.json"
_MANIFEST: Final = "manifest.jsonl"
_MESSAGES: Final = "messages"


class Outcome(Enum):
    """What became of a message for one recipient, as the sender and the next hop can see it."""

    DELIVERED = "delivered"  # the next hop got it
    DISCARDED = "discarded"  # taken, on record, and for nobody
    REJECTED = "rejected"  # refused with 5yz
    QUARANTINED = "quarantined"  # taken and kept for the administrator
    MARKED = "marked"  # the next hop got it with a field that calls it invalid
    ANSWERED = "answered"  # a call-out: 2yz to RCPT, and no message was sent
    DEFERRED = "deferred"  # refused with 4yz
    LOST = "lost"  # taken, for nobody, and not on record

    def __str__(self) -> str:
        """Return the word of the outcome."""
        return self.value


class Ending(Enum):
    """How the client ends the transaction."""

    MESSAGE = "message"  # with DATA and the message
    QUIT = "quit"  # a call-out that hangs up
    RSET = "rset"  # a call-out that stays for the next one


@dataclass(frozen=True, slots=True)
class Recipient:
    """One recipient of a message, and what is expected of it.

    Attributes:
        forward_path: as RCPT gives it, brackets included.
        parameters: of RCPT, without the leading space.
        verdict: what the proxy should find; None where that is open.
        disposition: what the proxy should do; None where that is open.
        outcome: what should become of it; None where that is open.
        next_hop_path: the path that the next hop should see; empty where it should see none.
        why: one clause.
    """

    forward_path: str
    parameters: str = ""
    verdict: Verdict | None = None
    disposition: Disposition | None = None
    outcome: Outcome | None = None
    next_hop_path: str = ""
    why: str = ""

    @property
    def path(self) -> ForwardPath:
        """The forward path."""
        return parse_rcpt(f"TO:{self.forward_path}".encode()).path


@dataclass(frozen=True, slots=True)
class Answered:
    """Mail that was sent before, as the sent ledger has it.

    Attributes:
        message_id: without brackets.
        sender: address.
        recipient: address.
    """

    message_id: str
    sender: str
    recipient: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a corpus.

    Attributes:
        file: its file, relative to the corpus; empty for a call-out, which has no message.
        kind: its class.
        dialect: which system's words it has; empty where that means nothing.
        client: address from which it is sent, in 127.0.0.0/8.
        helo: what the client calls itself.
        reverse_path: as MAIL gives it, brackets included.
        parameters: of MAIL, without the leading space.
        recipients: those that RCPT names, in their order.
        ending: how the transaction ends.
        answers: the mail of ours whose Message-ID it names; None where there is none, or where nothing depends on it.
    """

    file: str
    kind: str
    dialect: str
    client: str
    helo: str
    reverse_path: str
    parameters: str
    recipients: tuple[Recipient, ...]
    ending: Ending = Ending.MESSAGE
    answers: Answered | None = None

    @property
    def sender(self) -> ReversePath:
        """The reverse path."""
        return parse_mail(f"FROM:{self.reverse_path}".encode()).path

    @property
    def null_sender(self) -> bool:
        """Whether the reverse path is null."""
        return self.reverse_path.encode() == NULL_REVERSE_PATH.octets


@dataclass(frozen=True, slots=True)
class About:
    """How a corpus was made.

    Attributes:
        day: the day for which its addresses were signed; None for an imported one.
        seed: what it was made from; empty for an imported one.
        left_out: classes that could not be made, and why.
    """

    day: Day | None
    seed: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus that was read.

    Attributes:
        directory: its folder.
        about: how it was made.
        entries: its messages, in the order of the manifest.
    """

    directory: Path
    about: About
    entries: tuple[Entry, ...]

    def message(self, entry: Entry) -> bytes:
        """Return the octets of a message.

        Raises:
            CorpusError: its file is gone.
            IoError: it cannot be read.
        """
        path = self.directory / entry.file
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(path) from error
        except OSError as error:
            raise IoError(f"cannot read {path}: {error.strerror}", "look into it and try again") from error


class CorpusWriter:
    """Writes a corpus; where the context ends with an error, nothing is left of it.

    Args:
        directory: the folder to make; nothing may be there.

    Raises:
        CannotCreateError: the folder cannot be made, or something is in its place.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._building = self._directory.with_name(f".{self._directory.name}.{secrets.token_hex(8)}.tmp")
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        """Begin."""
        if os.path.lexists(self._directory):
            raise CannotCreateError(f"{self._directory} exists already", "move it away first, or name another folder")
        try:
            self._building.mkdir(0o700)
            (self._building / _MESSAGES).mkdir(0o700)
        except OSError as error:
            raise self._cannot(error) from error
        return self

    def add(self, entry: Entry, message: bytes | None) -> None:
        """Add a message.

        Args:
            entry: its line of the manifest; the file is named here.
            message: its octets; None for a call-out.

        Raises:
            CannotCreateError: it cannot be written.
        """
        fields = _fields(entry)
        if message is not None:
            fields["file"] = f"{_MESSAGES}/{len(self._lines) + 1:06d}.eml"
            try:
                self._write(self._building / fields["file"], message)
            except OSError as error:
                raise self._cannot(error) from error
        self._lines.append(json.dumps(fields, ensure_ascii=False) + "\n")

    def commit(self, about: About) -> None:
        """Give the corpus its name.

        Raises:
            CannotCreateError: it cannot be written.
        """
        fields = asdict(about) | {"day": about.day.iso() if about.day is not None else None}
        text = json.dumps({"format": _FORMAT, "count": len(self._lines)} | fields, indent=2, ensure_ascii=False)
        try:
            self._write(self._building / _MANIFEST, "".join(self._lines).encode())
            self._write(self._building / _ABOUT, f"{text}\n".encode())
            self._building.rename(self._directory)
        except OSError as error:
            raise self._cannot(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away what was not committed."""
        shutil.rmtree(self._building, ignore_errors=True)

    @staticmethod
    def _write(path: Path, octets: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)

    def _cannot(self, error: OSError) -> CannotCreateError:
        reason = (error.strerror or str(error)).lower()
        return CannotCreateError(
            f"cannot make the corpus {self._directory}: {reason}", "name a folder that you may make"
        )


def read_corpus(directory: Path, kinds: Iterable[str]) -> Corpus:
    """Return a corpus, after a look at every line and at whether every file is there.

    Args:
        directory: its folder.
        kinds: the classes that exist, beside the one of imported messages.

    Raises:
        CorpusError: it is no corpus, or a line of its manifest is wrong, names an unknown class or a missing file.
        IoError: it cannot be read.
    """
    known = {*kinds, IMPORTED}
    about = _about(directory / _ABOUT)
    path = directory / _MANIFEST
    entries = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            entry = _entry(json.loads(line))
        except (KeyError, TypeError, ValueError, RecursionError, AddressError) as error:
            raise CorpusError(
                f"{path}:{number} is no entry of a manifest ({type(error).__name__}: {error})", _AGAIN
            ) from error
        if entry.kind not in known:
            raise CorpusError(f"{path}:{number} names the unknown class '{entry.kind}'", _AGAIN)
        if entry.ending is Ending.MESSAGE and not (directory / entry.file).is_file():
            raise _missing(directory / entry.file, f", which line {number} of the manifest names")
        entries.append(entry)
    return Corpus(directory, about, tuple(entries))


_AGAIN: Final = "mend that line, or make the corpus again"


def _missing(path: Path, where: str = "") -> CorpusError:
    return CorpusError(f"there is no {path}{where}", "restore the file, or make the corpus again")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(
            f"there is no {path}", "name a folder that 'batv corpus generate' or 'batv corpus import' made"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text", "make the corpus again") from error
    except OSError as error:
        raise IoError(f"cannot read {path}: {error.strerror}", "look into it and try again") from error


def _about(path: Path) -> About:
    try:
        fields = json.loads(_text(path))
        if fields["format"] != _FORMAT:
            raise CorpusError(f"{path} has format {fields['format']}, not {_FORMAT}", "make the corpus again")
        day = Day.from_iso(fields["day"]) if fields["day"] is not None else None
        left_out = {str(kind): str(why) for kind, why in fields["left_out"].items()}
        return About(day, str(fields["seed"]), left_out)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, DayError) as error:
        raise CorpusError(f"{path} does not describe a corpus", "make the corpus again") from error


def _fields(entry: Entry) -> dict[str, Any]:
    return {
        "file": entry.file,
        "class": entry.kind,
        "dialect": entry.dialect,
        "client": entry.client,
        "helo": entry.helo,
        "reverse_path": entry.reverse_path,
        "parameters": entry.parameters,
        "ending": entry.ending.value,
        "recipients": [
            {
                name: value.value if isinstance(value, Enum) else value
                for name, value in ((name, getattr(recipient, name)) for name in Recipient.__slots__)
            }
            for recipient in entry.recipients
        ],
        "answers": asdict(entry.answers) if entry.answers is not None else None,
    }


def _entry(fields: dict[str, Any]) -> Entry:
    recipients = tuple(_recipients(fields["recipients"]))
    ending = Ending(fields["ending"])
    file = _string(fields["file"])
    parts = PurePosixPath(file).parts
    if ending is Ending.MESSAGE and (not parts or parts[0] != _MESSAGES or ".." in parts):
        raise ValueError(f"'{file}' is no file of a corpus")
    if not recipients:
        raise ValueError("no recipient")
    entry = Entry(
        file,
        _string(fields["class"]),
        _string(fields["dialect"]),
        _client(fields["client"]),
        _words(fields["helo"]),
        _string(fields["reverse_path"]),
        _words(fields["parameters"]),
        recipients,
        ending,
        _answered(fields.get("answers")),
    )
    # What a path may not be is found here, not in the middle of a replay.
    _ = (entry.sender, *(recipient.path for recipient in recipients))
    return entry


def _answered(fields: dict[str, Any] | None) -> Answered | None:
    if fields is None:
        return None
    return Answered(_string(fields["message_id"]), _string(fields["sender"]), _string(fields["recipient"]))


def _recipients(values: list[dict[str, Any]]) -> Iterator[Recipient]:
    for fields in values:
        yield Recipient(
            _string(fields["forward_path"]),
            _words(fields["parameters"]),
            Verdict(fields["verdict"]) if fields["verdict"] is not None else None,
            Disposition(fields["disposition"]) if fields["disposition"] is not None else None,
            Outcome(fields["outcome"]) if fields["outcome"] is not None else None,
            _string(fields["next_hop_path"]),
            _string(fields["why"]),
        )


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _words(value: object) -> str:
    """Return text that stands in a command line, where a line end would begin another command."""
    text = _string(value)
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a control character")
    return text


def _client(value: object) -> str:
    text = _string(value)
    octets = text.split(".")
    if len(octets) != 4 or octets[0] != "127" or not all(each.isdecimal() and int(each) < 256 for each in octets):  # noqa: PLR2004 -- IPv4
        raise ValueError(f"'{text}' is no address in 127.0.0.0/8")
    return text
