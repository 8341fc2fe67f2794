"""Why an address cannot be connected to is said in a few words, and the address only once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from batv.net.reason import reason
from tests.support.port import free_port


async def _refused(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> OSError:
    """Return the error of a connection to a name that has these addresses, at none of which anybody listens."""
    loop, port = asyncio.get_running_loop(), free_port()

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)  # no name has such addresses on every host
    with pytest.raises(OSError, match=r".") as caught:
        await loop.create_connection(asyncio.Protocol, "mx.example.com", port)
    return caught.value


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2")])
def test_a_refused_connection_is_called_so_however_many_addresses_refuse_it(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    """The log has the address already, and asyncio's text has it again for each attempt, with numbers."""
    assert reason(asyncio.run(_refused(monkeypatch, *addresses))) == "Connection refused"


def test_reasons_that_differ_are_all_told() -> None:
    """What keeps one address away may be another thing than what keeps the other away."""
    said = "Multiple exceptions: [Errno 111] Connect call failed ('192.0.2.1', 25), [Errno 101] Connect call failed"
    assert reason(OSError(f"{said} ('2001:db8::1', 25, 0, 0)")) == "Connection refused; Network is unreachable"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("the loop's own words"), "the loop's own words"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_an_error_without_a_number_of_the_system_keeps_its_words(error: OSError | UnicodeError, said: str) -> None:
    """Some words are better than none."""
    assert reason(error) == said
