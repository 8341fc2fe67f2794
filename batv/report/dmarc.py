"""DMARC aggregate reports: who sent mail in the name of a domain, as its recipients saw it.

Anybody can send such a report, so nothing in it is believed more than it must be: a document type declaration, and
with it every entity, is refused; octets, depth, texts and rows are bounded. Elements are known by their local names,
since reporters put them into several namespaces or into none.

Counts are messages, times POSIX seconds. Source: RFC 7489 section 7.2 and appendix C. Raises ReportError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from xml.parsers import expat

from batv.address import DOMAIN
from batv.errors import ReportError

__all__ = ["MAX_REPORT_OCTETS", "Aggregate", "Row", "parse_report"]

MAX_REPORT_OCTETS: Final = 64 << 20
"""Of the XML of a report. Those of large receivers about large senders have some 10 MiB."""

_MAX_DEPTH: Final = 16
_MAX_TEXT: Final = 1024
_MAX_ROWS: Final = 500_000
_MAX_RESULTS: Final = 100
"""Signatures of one row."""

_PIECE_OCTETS: Final = 65_536
_MAX_COUNT: Final = 10**12
_DOMAIN_NAME: Final = re.compile(DOMAIN)


@dataclass(frozen=True, slots=True)
class Row:
    """Messages that one server sent, and that were alike.

    Attributes:
        source: the server.
        count: how many.
        header_from: domain of the From field, in lower case.
        envelope_from: domain of the reverse path, in lower case; empty where the report does not say it.
        null_sender: whether the reverse path was null, as far as the report says.
        dkim: whether a signature in alignment with the From field was good.
        spf: whether the server may send for the reverse path, and that is in alignment with the From field.
        signers: domains of good signatures, in lower case.
    """

    source: IPv4Address | IPv6Address
    count: int
    header_from: str
    envelope_from: str
    null_sender: bool
    dkim: bool
    spf: bool
    signers: tuple[str, ...]

    @property
    def aligned(self) -> bool:
        """Whether the mail was what it said to be: a forger has neither our keys nor our servers."""
        return self.dkim or self.spf


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A report.

    Attributes:
        reporter: who made it, as it calls itself.
        identifier: its name among those of its reporter.
        begin: the time of which it tells begins then.
        end: and ends then.
        rows: what it tells.
    """

    reporter: str
    identifier: str
    begin: int
    end: int
    rows: tuple[Row, ...]


def parse_report(octets: bytes) -> Aggregate:
    """Return the report that an XML text holds.

    Raises:
        ReportError: it is too long, no XML, has a document type, or is no report.
    """
    if len(octets) > MAX_REPORT_OCTETS:
        raise ReportError(f"it has more than {MAX_REPORT_OCTETS >> 20} MiB")
    reading = _Reading()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reading.refuse_doctype
    parser.StartElementHandler = reading.begin
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.text
    try:
        for start in range(0, len(octets), _PIECE_OCTETS):
            parser.Parse(octets[start : start + _PIECE_OCTETS], False)  # noqa: FBT003 -- the parser's signature
        parser.Parse(b"", True)  # noqa: FBT003 -- as above
    except expat.ExpatError as error:
        raise ReportError(f"it is no XML, line {error.lineno}: {expat.errors.messages[error.code]}") from error
    except (LookupError, ValueError) as error:  # an encoding that nobody knows
        raise ReportError(f"it cannot be read, {type(error).__name__}") from error
    return reading.report()


@dataclass(slots=True)
class _Open:
    """A row that is being read: the last text of each element, by its place below the row, and the results."""

    texts: dict[str, str] = field(default_factory=dict)
    results: list[dict[str, str]] = field(default_factory=list)


class _Reading:
    def __init__(self) -> None:
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._length = 0
        self._heads: dict[str, str] = {}
        self._rows: list[Row] = []
        self._row: _Open | None = None
        self._result: dict[str, str] | None = None

    def refuse_doctype(self, *_: object) -> None:
        """Refuse what entities come with."""
        raise ReportError("it has a document type declaration, which no report needs")

    def begin(self, name: str, _attributes: object) -> None:
        """Take note of the begin of an element."""
        if len(self._path) >= _MAX_DEPTH:
            raise ReportError(f"its elements are nested more than {_MAX_DEPTH} deep")
        self._path.append(name.rpartition(" ")[2])
        self._pieces, self._length = [], 0
        if self._path == ["feedback", "record"]:
            if len(self._rows) >= _MAX_ROWS:
                raise ReportError(f"it has more than {_MAX_ROWS} records")
            self._row = _Open()
        elif self._row is not None and self._path[2:3] == ["auth_results"] and len(self._path) == 4:  # noqa: PLR2004 -- feedback/record/auth_results/dkim
            if len(self._row.results) >= _MAX_RESULTS:
                raise ReportError(f"a record has more than {_MAX_RESULTS} results")
            self._result = {"": self._path[3]}
            self._row.results.append(self._result)

    def text(self, text: str) -> None:
        """Take note of text."""
        self._length += len(text)
        if self._length > _MAX_TEXT:
            if text.strip():
                raise ReportError(f"an element has more than {_MAX_TEXT} characters")
            return
        self._pieces.append(text)

    def end(self, _name: str) -> None:
        """Take note of the end of an element."""
        text = "".join(self._pieces).strip()
        self._pieces, self._length = [], 0
        inside = self._path[1:]
        if self._row is None:
            if len(inside) in {2, 3}:
                self._heads.setdefault("/".join(inside), text)
        elif inside == ["record"]:
            self._rows.append(_row(self._row, len(self._rows) + 1))
            self._row = None
        elif self._result is not None and len(inside) == 4:  # noqa: PLR2004 -- record/auth_results/dkim/domain
            self._result.setdefault(inside[3], text.lower())
        else:
            if len(inside) == 3 and inside[1] == "auth_results":  # noqa: PLR2004 -- record/auth_results/dkim
                self._result = None
            self._row.texts.setdefault("/".join(inside[1:]), text)
        self._path.pop()

    def report(self) -> Aggregate:
        """Return what was read."""
        if not self._rows and not self._heads:
            raise ReportError("it is no aggregate report")
        head = self._heads
        return Aggregate(
            head.get("report_metadata/org_name", ""),
            head.get("report_metadata/report_id", ""),
            _number(head.get("report_metadata/date_range/begin", "0"), "date_range"),
            _number(head.get("report_metadata/date_range/end", "0"), "date_range"),
            tuple(self._rows),
        )


def _row(found: _Open, number: int) -> Row:
    texts = found.texts
    try:
        source = ip_address(texts.get("row/source_ip", ""))
    except ValueError as error:
        raise ReportError(f"record {number} has no source_ip") from error
    # An SPF result without a scope is about the reverse path: reports of older make know no other.
    spf = [each for each in found.results if each[""] == "spf"]
    envelope = _domain(texts.get("identifiers/envelope_from", ""))
    if not envelope:
        envelope = next((_domain(each.get("domain", "")) for each in spf if each.get("scope") != "helo"), "")
    return Row(
        source=source,
        count=_number(texts.get("row/count", ""), f"count of record {number}"),
        header_from=_domain(texts.get("identifiers/header_from", "")),
        envelope_from=envelope,
        null_sender=not envelope and any(each.get("scope") == "helo" for each in spf),
        dkim=texts.get("row/policy_evaluated/dkim", "").lower() == "pass",
        spf=texts.get("row/policy_evaluated/spf", "").lower() == "pass",
        signers=tuple(
            dict.fromkeys(
                _domain(each.get("domain", ""))
                for each in found.results
                if each[""] == "dkim" and each.get("result") == "pass"
            )
        ),
    )


def _domain(text: str) -> str:
    # Some reporters give the whole address, or a dot at the end; some give no name at all.
    name = text.lower().rpartition("@")[2].strip("<>").removesuffix(".")
    return name if _DOMAIN_NAME.fullmatch(name.encode()) else ""


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > _MAX_COUNT:
        raise ReportError(f"{what} is no number")
    return int(text)
