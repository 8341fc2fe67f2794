"""Where DMARC aggregate reports are found: in files, in folders, and in the mails that they come with.

A file is known by its first octets, whatever its name: XML, gzip, ZIP, or else a mail, whose parts are looked at
alike. Folders are searched wholly, a Maildir too; links in them are not followed. Mails hold other things than reports
of this kind, so what is no XML in them is passed over.

Whatever is unpacked is bounded, so that a small file does not become a large one.

Source: RFC 7489 section 7.2.1.1.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from email import policy
from email.parser import BytesParser
from typing import TYPE_CHECKING, Final

from batv.errors import BatvError, IoError, ReportError
from batv.report.dmarc import MAX_REPORT_OCTETS, parse_report
from batv.store.files import read_bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from batv.report.dmarc import Aggregate

__all__ = ["reports_in"]

_MAX_FILE_OCTETS: Final = 64 << 20
_MAX_PARTS: Final = 100
_MAX_MEMBERS: Final = 100
_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_BEGINNING: Final = 64


def reports_in(paths: Iterable[Path]) -> Iterator[tuple[str, Aggregate | BatvError | None]]:
    """Yield the name of each file with a report that it holds, with what is wrong with it, or with None for nothing.

    Raises:
        IoError: a path that was given cannot be read.
    """
    for path in paths:
        for file in _files(path):
            found: Aggregate | BatvError | None = None
            try:
                for found in _reports(read_bounded(file, _MAX_FILE_OCTETS)):
                    yield str(file), found
            except FileNotFoundError as error:
                if file == path:
                    raise IoError(f"there is no {path}", "name a file or a folder with DMARC reports") from error
                found = ReportError("it has vanished")  # as mails do when somebody reads them
                yield str(file), found
            except BatvError as error:
                found = error
                yield str(file), error
            if found is None:
                yield str(file), None


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise IoError(f"cannot read {path}: {error.strerror}", "name another folder") from error
    for entry in entries:
        if entry.is_symlink():
            continue
        if entry.is_dir():
            # What a mail server still writes is no mail yet.
            if entry.name != "tmp":
                yield from _files(entry)
        elif entry.is_file():
            yield entry


def _reports(octets: bytes) -> Iterator[Aggregate]:
    """Yield the reports of a file; raises ReportError where one is broken."""
    if _packed(octets):
        for text in _unpacked(octets):
            yield parse_report(text)
        return
    for part in _parts(octets):
        for text in _unpacked(part):
            # Reports about TLS (RFC 8460) come to the same mailbox, packed in the same way.
            if _is_xml(text):
                yield parse_report(text)


def _packed(octets: bytes) -> bool:
    return octets.startswith((_GZIP, _ZIP)) or _is_xml(octets)


def _is_xml(octets: bytes) -> bool:
    return octets[:_BEGINNING].lstrip().startswith((b"<", *_BYTE_ORDER_MARKS))


def _parts(octets: bytes) -> Iterator[bytes]:
    """Yield what the parts of a mail hold that may be a report."""
    message = BytesParser(policy=policy.compat32).parsebytes(octets)
    for number, part in enumerate(message.walk()):
        if number >= _MAX_PARTS:
            raise ReportError(f"it is a mail of more than {_MAX_PARTS} parts")
        if part.is_multipart():
            continue
        content = part.get_payload(decode=True)
        # The text around a report may be HTML, which begins like XML.
        if isinstance(content, bytes) and _packed(content) and part.get_content_type() != "text/html":
            yield content


def _unpacked(octets: bytes) -> Iterator[bytes]:
    if octets.startswith(_GZIP):
        yield _gunzipped(octets)
    elif octets.startswith(_ZIP):
        yield from _unzipped(octets)
    else:
        yield octets


def _gunzipped(octets: bytes) -> bytes:
    # zlib rather than gzip: it stops at a number of octets.
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = unpacking.decompress(octets, MAX_REPORT_OCTETS + 1)
    except zlib.error as error:
        raise ReportError("it is damaged, as gzip") from error
    if len(text) <= MAX_REPORT_OCTETS and not unpacking.eof:
        raise ReportError("it is cut short, as gzip")
    return text


def _unzipped(octets: bytes) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(octets)) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if len(members) > _MAX_MEMBERS:
                raise ReportError(f"it is a ZIP of more than {_MAX_MEMBERS} files")
            for member in members:
                with archive.open(member) as file:
                    yield file.read(MAX_REPORT_OCTETS + 1)
    # RuntimeError is what a password gets, NotImplementedError an unknown way of packing.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
        raise ReportError("it is damaged, as ZIP") from error
