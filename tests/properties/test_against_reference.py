"""Every parser against a slow and obvious reading of the same octets, whatever they are and however they come.

The checks are those that scripts/fuzz makes, and the octets that it begins with are read here too.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.fuzzing.targets import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conftest import Sample

_FUZZING: Final = Path(__file__).parents[2] / "scripts" / "fuzzing"

_MESSAGE: Final = (b"\r\n", b"\r\n", b"\r", b"\n", b".", b"..", b"\0", b"a", b" ", b"\r\n.\r\n", b"\xff")

PIECES: Final[dict[str, tuple[bytes, ...]]] = {
    "commands": (
        *(b"EHLO a\r\n", b"HELO a\r\n", b"MAIL FROM:<>", b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>"),
        *(b"RCPT TO:<c@remote.example>", b"\r\n", b"\r\n", b"\n", b"\r", b"DATA\r\n", b"QUIT\r\n", b"RSET\r\n"),
        *(b"NOOP x\r\n", b"XYZZY\r\n", b" ", b" SIZE=1", b"\0", b"\xff", b".\r\n", b"STARTTLS\r\n", b"x" * 2000),
        *(b"XCLIENT ADDR=192.0.2.7\r\n", b"XFORWARD NAME=a.b\r\n"),
    ),
    "data": _MESSAGE,
    "origin": (
        *(
            b" ",
            b"=",
            b"ADDR=",
            b"NAME=",
            b"PORT=",
            b"HELO=",
            b"PROTO=",
            b"LOGIN=",
            b"IDENT=",
            b"SOURCE=",
            b"DESTADDR=",
        ),
        *(b"25", b"SMTP", b"lmtp", b"local", b"192.0.2.7", b"IPV6:", b"::1", b"::ffff:192.0.2.7", b"[UNAVAILABLE]"),
        *(b"+", b"+41", b"+c3+b6", b"+0D", b"a", b"a.example", b"x" * 100),
    ),
    "parameters": (
        *(b" ", b"=", b"SIZE", b"SIZE=1", b"BODY=", b"body=", b"BINARYMIME", b"7BIT", b"AUTH=<>", b"RET=HDRS"),
        *(b"-", b"<", b"a", b"9", b"\xff"),
    ),
    "path": (
        *(b"FROM:", b"TO:", b"FROM:<", b"TO:<", b"to: ", b"<", b">", b"@", b'"', b"\\", b"a", b"b.c", b"[", b"]", b"."),
        *(b"-", b"_", b",", b":", b" ", b"=", b" SIZE=1", b"postmaster", b"\xc3\xb6", b"\xff", b"@a:", b"x" * 300),
        *(b"<a@b>", b"@b.c>"),
    ),
    "proxy_header": (
        *(
            b"PROXY ",
            b"TCP4",
            b"TCP6",
            b"UNKNOWN",
            b" ",
            b"192.0.2.7 198.51.100.1 ",
            b"::1",
            b"25",
            b"_",
            b"\r\n",
            b"\r",
        ),
        *(b"0", b"65536", b"PROXY TCP4 192.0.2.7 198.51.100.1 9 ", b"10\r\n", b"\r\n\r\n\0\r\nQUIT\n", b"\x20", b"\0"),
        *(b"\x21\x11\0\x0c", b"1234", b"\x21\x21\0\x24", b"x" * 36),
    ),
    "reply": (
        *(b"250", b"-", b" ", b"\r\n", b"\r\n", b"\r", b"\n", b"a", b"x" * 2044, b"354", b"250-", b"250 a\r\n"),
        *(b"250-SIZE 0\r\n", b"\t", b"\0", b"\xff", b"6", b"199"),
    ),
    "status_field": (
        *(
            b"X-Batv-Status",
            b"x-batv-STATUS",
            b":",
            b" ",
            b"\t",
            b"\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b".",
            b"a",
            b"\r",
            b"\n",
        ),
        *(
            b"Subject: x",
            b" " * 300,
            b"y" * 2100,
            b"X-Batv",
            b"Message-ID:",
            b"Received:",
            b"X-MS-Exchange-CrossTenant-Id:",
        ),
    ),
    "tag": (
        *(
            b"prvs=",
            b"PRVS=",
            b"0787abcdef",
            b"=",
            b"+",
            b"+prvs=0787abcdef",
            b"prvs=0787ABCDEF=",
            b"@a.b",
            b'"',
            b"\\",
        ),
        *(b"u", b"\xc3\xb6", b"SRS0=", b'"prvs=0787abcdef=', b'"@a.b', b"+prvs=0787abcdef@a.b", b"u@a.b"),
    ),
    "unstuffing": _MESSAGE,
}
"""What the octets of each target are made of, besides octets by chance."""


def _checking(name: str) -> AbstractContextManager[Callable[[bytes], None]]:
    target: Any = importlib.import_module(f"scripts.fuzzing.targets.{name}")
    checking: AbstractContextManager[Callable[[bytes], None]] = target.checking()
    return checking


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_any_octets_are_read_as_the_reference_reads_them(name: str, sample: Sample) -> None:
    """To read what others read otherwise is to judge one address, one reply or one message, and to send another."""
    pieces = st.lists(st.sampled_from(PIECES[name]) | st.binary(max_size=3), max_size=30).map(b"".join)
    with _checking(name) as check:

        @settings(max_examples=len(sample(range(10_000), 25)), deadline=None)
        @given(octets=pieces | st.binary(max_size=50))
        def read(octets: bytes) -> None:
            check(octets)

        read()


@pytest.mark.parametrize("name", NAMES)
def test_octets_that_are_known_to_deceive_are_read_as_the_reference_reads_them(name: str) -> None:
    """What was found once stays mended."""
    seeds = sorted((_FUZZING / "seeds" / name).iterdir())
    assert len(seeds) > 5
    with _checking(name) as check:
        for seed in seeds:
            try:
                check(seed.read_bytes())
            except AssertionError as error:
                error.add_note(f"read: {seed}")
                raise
