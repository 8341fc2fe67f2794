"""Message ends that a real Postfix takes for one where the client's network is exempt from its protection.

The proxy is such a client: Postfix must trust it. After each sequence the client goes on with the commands of a second
message. One message must arrive, or none, from either proxy; two arrive where nobody stands before Postfix.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import pytest

from batv.observe.event import Direction
from tests.support.mta import Postfix, ServiceTable, free_ports, mta_folder
from tests.support.recorder import Client
from tests.support.relay import running
from tests.support.smuggling import BARE, CLEAN, END, SMUGGLED, has_bare, in_pieces
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mta("postfix"), pytest.mark.timeout(600)]

_BETWEEN: Final = {
    Direction.INBOUND: (b"bob@peer.example", b"joe@example.com"),
    Direction.OUTBOUND: (b"joe@example.com", b"bob@peer.example"),
}
_USERS: Final = ("joe", "bob", "v")
_STRANGER: Final = "127.0.0.2"
_OPENING: Final = b"Subject: one\r\n\r\nx"
_HONEST: Final = (
    b"Subject: honest\r\n\r\n..\r\n..dot\r\n \t\r\n\xff\x80\xe2\x80\xa8\r\n" + b"z" * 998 + b"\r\n\r\nend\r\n"
)

_TAKEN: Final = (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", b"\n\n.\r\n", b"\r\n\n.\r\n")
"""What Postfix takes for the end of a message from a client that it trusts: it ends lines with LF, and strips CRs."""


class Receiver:
    """A Postfix that trusts this host, with mailboxes for the messages and for what is smuggled.

    Attributes:
        postfix: the instance.
        port: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        services = ServiceTable.shipped()
        services.put(f"127.0.0.1:{self.port} inet n - n - - smtpd\n")
        settings = [
            "mynetworks = 127.0.0.1/32",
            "smtpd_forbid_bare_newline = yes",
            "smtpd_forbid_bare_newline_exclusions = $mynetworks",
            "virtual_mailbox_domains = example.com, peer.example",
            "virtual_mailbox_maps = inline:{ {joe@example.com=joe/}, {v@example.com=v/}, {bob@peer.example=bob/} }",
        ]
        self.postfix: Final = Postfix(folder / "postfix", "mail.example.com", settings, services, {})

    async def client(self, address: str = "127.0.0.1") -> Client:
        """Return a client of Postfix itself, greeted."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        client = Client(reader, writer)
        assert (await client.reply())[:3] == b"220"
        assert (await client.say(b"EHLO client.example"))[:3] == b"250"
        return client

    async def arrived(self) -> dict[str, list[bytes]]:
        """Return what has come into each mailbox since the last call, once all that Postfix has taken is there."""
        # Every session so far was begun before this one, and the log tells so before it tells of this one.
        mark = rf"\bconnect from unknown\[{re.escape(_STRANGER)}\]"
        before = len(re.findall(mark, self.postfix.log()))
        client = await self.client(_STRANGER)
        await client.say(b"QUIT")
        client.close()
        until(lambda: len(re.findall(mark, self.postfix.log())) > before, "session of a stranger in the log")
        until(self._settled, "end of all sessions, and delivery of all messages")
        found: dict[str, list[bytes]] = {user: [] for user in _USERS}
        for user in _USERS:
            for file in (self.postfix.maildir(user).path / "new").glob("*"):
                found[user].append(file.read_bytes())
                file.unlink()
        return found

    def _settled(self) -> bool:
        log = self.postfix.log()
        # Postfix counts the commands of a session at its end: `data=1` for one that succeeded, `data=0/1` else.
        ended = re.findall(r"\bdisconnect from \S+(?:.* data=([0-9]+))?", log)
        taken = sum(int(count or 0) for count in ended)
        begun = len(re.findall(r"\bconnect from ", log))
        return begun == len(ended) and taken == len(re.findall(r"qmgr\[[0-9]+\]: [0-9A-F]+: removed", log))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Give the Postfix, running."""
    with mta_folder() as folder:
        given = Receiver(folder)
        with given.postfix:
            yield given


async def sent(client: Client, direction: Direction, pieces: list[bytes]) -> bytes:
    """Return the reply to a message that is sent in pieces."""
    await client.pieces([b"MAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % _BETWEEN[direction]])
    assert [(await client.reply())[:3] for _ in range(3)] == [b"250", b"250", b"354"]
    await client.pieces([piece for piece in pieces if piece])
    return await client.reply()


@pytest.mark.parametrize("bare_newlines", ["normalize", "reject"])
@pytest.mark.parametrize("direction", _BETWEEN)
@pytest.mark.parametrize("sequences", [BARE, CLEAN], ids=["bare", "clean"])
def test_one_message_or_none_arrives(
    sequences: tuple[bytes, ...], direction: Direction, bare_newlines: str, receiver: Receiver, tmp_path: Path
) -> None:
    """Whatever the client does to have it taken for two, and the honest messages about it arrive as they were sent."""
    changes = {
        "smtp": {"bare_newlines": bare_newlines, "max_idle_commands": 100_000},
        "next_hop": {"command_seconds": 60, "data_seconds": 60, "message_seconds": 60, "connect_seconds": 60},
    }

    async def run() -> None:
        await receiver.arrived()  # what a test that failed has left
        carried = honest = 0
        async with running(tmp_path, direction, receiver.port, changes) as relay:
            for sequence in sequences:
                client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
                await client.reply()
                await client.say(b"EHLO client.example")
                message = _OPENING + sequence + SMUGGLED + END
                refused = bare_newlines == "reject" and has_bare(message)
                for pieces in in_pieces(message, len(_OPENING) - 1, len(_OPENING) + len(sequence) + 1):
                    reply = await sent(client, direction, pieces)
                    assert (pieces, reply[:10]) == (pieces, b"550 5.6.11" if refused else b"250 2.0.0 ")
                    carried += not refused
                assert (await sent(client, direction, [_HONEST + b".\r\n"]))[:3] == b"250"
                honest += 1
                assert (await client.say(b"QUIT"))[:3] == b"221"
                client.close()
            assert relay.errors == []
        found = await receiver.arrived()
        recipient = _BETWEEN[direction][1].partition(b"@")[0].decode()
        mails = found.pop(recipient)
        assert [mail for others in found.values() for mail in others] == []
        assert sum(mail.count(b"\nSubject: smuggled\n\nx") for mail in mails if b"\nSubject: one\n" in mail) == carried
        # To the header Postfix adds a date and the like, as it does for clients that it trusts.
        bodies = [mail.partition(b"\n\n")[2] for mail in mails if b"\nSubject: honest\n" in mail]
        kept = _HONEST.replace(b"\r\n", b"\n").replace(b"\n..", b"\n.").partition(b"\n\n")[2]
        assert bodies == [kept] * honest
        assert len(mails) == carried + honest

    asyncio.run(run())


def test_without_the_proxy_two_messages_arrive(receiver: Receiver) -> None:
    """A Postfix that is not to be deceived would show nothing; no other sequence than these deceives it."""

    async def run() -> None:
        await receiver.arrived()  # what a test that failed has left
        taken = []
        for sequence in BARE + CLEAN:
            client = await receiver.client()
            message = _OPENING + sequence + SMUGGLED + END
            assert (await sent(client, Direction.INBOUND, [message + b"QUIT\r\n"]))[:3] == b"250"
            while (await client.reply())[:3] != b"221":
                pass
            client.close()
            found = await receiver.arrived()
            assert len(found["joe"]) == 1
            if found["v"]:
                taken.append(sequence)
        assert tuple(taken) == _TAKEN

    asyncio.run(run())
