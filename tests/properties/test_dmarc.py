"""Whatever somebody sends to the address for DMARC reports is a report or a ReportError, and nothing else."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st

from batv.errors import ReportError
from batv.report.dmarc import parse_report
from batv.report.reading import reports_in
from tests.support.dmarc import Sent, mailed, report_xml, zipped

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_REPORT: Final = report_xml([Sent("11.0.0.1", 3), Sent("2600::1", 4, envelope=None, spf_scope="")])
_FORMS: Final = (_REPORT, gzip.compress(_REPORT, mtime=0), zipped(_REPORT), mailed(_REPORT))


@st.composite
def _damaged(draw: st.DrawFn, octets: bytes) -> bytes:
    """Return octets of which some were changed, left out or put in."""
    found = bytearray(octets)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(found)))
        found[place : place + draw(st.integers(0, 20))] = draw(st.binary(max_size=20))
    return bytes(found)


_words = st.sampled_from(
    (
        *(
            b"<",
            b">",
            b"</",
            b"/>",
            b"feedback",
            b"record",
            b"row",
            b"count",
            b"source_ip",
            b"11.0.0.1",
            b"&lt;",
            b"&a;",
        ),
        *(b"<!DOCTYPE a [", b"]>", b"<![CDATA[", b"]]>", b"<?xml version='1.0' encoding='utf-16'?>", b"\xff\xfe", b" "),
    )
)


@given(_damaged(_REPORT) | st.binary() | st.lists(_words, max_size=40).map(b"".join))
def test_octets_are_a_report_or_an_error(octets: bytes) -> None:
    """One exception of another kind would end the command, and hide every other report."""
    try:
        report = parse_report(octets)
    except ReportError:
        return
    assert all(row.count >= 0 for row in report.rows)


@given(octets=st.sampled_from(_FORMS).flatmap(_damaged))
def test_a_file_is_reports_or_an_error(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    """Packed or mailed, damaged anywhere."""
    file: Path = tmp_path_factory.getbasetemp() / "damaged-report"
    file.write_bytes(octets)
    for name, _ in reports_in([file]):
        assert name == str(file)
