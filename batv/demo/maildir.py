"""Maildirs: a message has its name in `new` only when all of it is on the disk.

Source: the Maildir specification of D. J. Bernstein.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Maildir", "deliver", "mailbox_folder"]


class Maildir:
    """A Maildir; its folders are made, mode 0700, when the first message comes.

    Args:
        directory: its folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def messages(self) -> list[Path]:
        """Return the files of its messages, oldest first."""
        found: list[Path] = []
        for folder in ("new", "cur"):
            with suppress(FileNotFoundError):
                found.extend(path for path in (self.directory / folder).iterdir() if not path.name.startswith("."))
        return sorted(found, key=lambda path: path.name)

    def prepare(self, octets: bytes) -> Path:
        """Write a message to `tmp`, wait until the disk has it, and return the file.

        Raises:
            OSError: the message is not on the disk; nothing is left of it.
        """
        for folder in ("tmp", "new", "cur"):
            (self.directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / "tmp" / f"{time.time_ns()}.{secrets.token_hex(8)}.batv"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def deliver(messages: Iterable[tuple[Maildir, bytes]]) -> None:
    """Deliver several messages, all or none: each is on the disk before the first gets its name in `new`. Blocks.

    Raises:
        OSError: none was delivered.
    """
    prepared: list[Path] = []
    try:
        for maildir, octets in messages:
            prepared.append(maildir.prepare(octets))
    except BaseException:
        for path in prepared:
            path.unlink(missing_ok=True)
        raise
    for path in prepared:
        new = path.parent.parent / "new"
        path.rename(new / path.name)
        folder = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def mailbox_folder(mail: Path, mailbox: str) -> Path:
    """Return the folder of a mailbox below the folder of all; no address leads out of that one."""
    name = quote(mailbox, safe="@+=!#$&'*^{}~")
    return mail / (f"%2E{name[1:]}" if name.startswith(".") else name)
