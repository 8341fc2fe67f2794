"""`batv corpus import`: an administrator's own messages, with the envelopes that they came with."""

from __future__ import annotations

import mailbox
from email.message import EmailMessage
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.corpus.ground import Ground

BOUNCE = (
    b"Return-Path: <>\nDelivered-To: joe@example.com\nFrom: MAILER-DAEMON@peer.example\nTo: joe@example.com\n"
    b"Subject: failure notice\nMessage-ID: <1@peer.example>\n\nFrom here it went nowhere.\n.\n"
)
LETTER = (
    b"Return-Path: <ann@peer.example>\nTo: Joe <joe@example.com>, eve@example.org\nFrom: ann@peer.example\n"
    b"Message-ID: <2@peer.example>\n\nHello.\n"
)


def imported(ground: Ground, source: Path) -> list[tuple[str, list[str], bytes]]:
    """Import, and return reverse path, forward paths and octets of each message."""
    folder = ground.folder / "corpus"
    said = ground("import", str(source), "--out", str(folder), "--json")
    assert said.status == 0, said.err
    corpus = ground.read("corpus")
    assert said.fields["count"] == len(corpus.entries)
    for entry in corpus.entries:
        assert entry.kind == "imported"
        assert {(each.verdict, each.disposition, each.outcome) for each in entry.recipients} == {(None, None, None)}
    return [
        (entry.reverse_path, [each.forward_path for each in entry.recipients], corpus.message(entry))
        for entry in corpus.entries
    ]


def test_a_maildir_is_imported(ground: Ground, tmp_path: Path) -> None:
    """With the envelope that its delivery agent wrote down; the messages get the line ends of SMTP."""
    for folder in ("cur", "new", "tmp"):
        (tmp_path / "mail" / folder).mkdir(parents=True)
    (tmp_path / "mail" / "new" / "1.host").write_bytes(BOUNCE)
    (tmp_path / "mail" / "cur" / "2.host:2,S").write_bytes(LETTER)
    assert imported(ground, tmp_path / "mail") == [
        ("<>", ["<joe@example.com>"], BOUNCE.replace(b"\n", b"\r\n")),
        ("<ann@peer.example>", ["<joe@example.com>", "<eve@example.org>"], LETTER.replace(b"\n", b"\r\n")),
    ]


def test_an_mbox_is_imported(ground: Ground, tmp_path: Path) -> None:
    """Lines that were quoted because they begin like a message are as they were."""
    box = mailbox.mbox(tmp_path / "box")
    for octets in (BOUNCE, LETTER):
        box.add(octets)
    box.close()
    found = imported(ground, tmp_path / "box")
    assert [(sender, paths) for sender, paths, _ in found] == [
        ("<>", ["<joe@example.com>"]),
        ("<ann@peer.example>", ["<joe@example.com>", "<eve@example.org>"]),
    ]
    assert found[0][2] == BOUNCE.replace(b"\n", b"\r\n")


def test_a_folder_of_eml_files_is_imported(ground: Ground, tmp_path: Path) -> None:
    """What says nothing of its envelope counts as a bounce to the address in To; what has no address is named."""
    source = tmp_path / "messages"
    (source / "deep").mkdir(parents=True)
    message = EmailMessage()
    message["To"] = "joe@example.com"
    message.set_content("Hello.\n")
    (source / "deep" / "a.eml").write_bytes(bytes(message))
    (source / "b.EML").write_bytes(b"Subject: for nobody\n\nHello.\n")
    (source / "notes.txt").write_bytes(b"no message")
    folder = tmp_path / "corpus"
    said = ground("import", str(source), "--out", str(folder), "--json")
    assert said.fields == {"directory": str(folder), "count": 1, "left_out": {"b.EML": "no address that it was for"}}
    assert "b.EML is left out" in said.err
    (entry,) = ground.read("corpus").entries
    assert (entry.reverse_path, entry.recipients[0].forward_path) == ("<>", "<joe@example.com>")


def test_what_was_imported_is_replayed_and_cannot_be_wrong(ground: Ground, tmp_path: Path) -> None:
    """There are no labels: the matrix tells what would become of the messages, and octets are compared all the same."""
    source = tmp_path / "messages"
    source.mkdir()
    for number, octets in enumerate((BOUNCE, LETTER, BOUNCE), start=1):
        (source / f"{number}.eml").write_bytes(octets)
    imported(ground, source)
    said = ground("run", str(ground.folder / "corpus"), "--json")
    assert said.status == 0, said.out
    counts = {name: count for name, count in said.fields["matrix"]["imported"].items() if count}
    assert counts == {"delivered": 2, "discarded": 2}
