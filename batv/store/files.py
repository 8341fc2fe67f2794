"""Files that are there whole or not at all, and files that only their owner can read.

Writing: a temporary file in the same folder, all octets, fsync, rename, fsync of the folder. Whoever reads sees
the old file or the new one, after a crash too. Reading: never through a link, never from anything but a regular
file, never more than a bound. Locking: one advisory lock for a folder, which the kernel releases when its holder
dies.

Source: open(2), rename(2), flock(2); sysexits(3) for the exit status of each error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batv.errors import BatvError, CannotCreateError, IoError, TryAgainError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LOCK_NAME",
    "LOCK_SECONDS",
    "Owner",
    "check_private_folder",
    "close_folder",
    "locked",
    "make_folder",
    "read_bounded",
    "read_private",
    "sweep",
    "write_atomically",
]

LOCK_NAME: Final = ".lock"
"""File in a folder on which its lock is held."""

LOCK_SECONDS: Final = 10.0
"""How long a lock is waited for: far longer than any holder needs, short enough for somebody at a terminal."""

_LOCK_POLL_SECONDS: Final = 0.02
_GROUP_OR_OTHERS: Final = 0o077
_WRITABLE_BY_OTHERS: Final = 0o022
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")

_REMEDIES: Final = {
    errno.ENOSPC: "make room on that disk and try again",
    errno.EDQUOT: "make room in the quota and try again",
    errno.EROFS: "the file system is mounted read-only: mount it writable or name another folder",
    errno.EIO: "the disk reports a fault: look into the system's log",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "a part of the path is no folder: name another",
    errno.EMFILE: "raise the limit on open files",
    errno.ENAMETOOLONG: "give a shorter name",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom a file belongs.

    Attributes:
        user: numeric user id.
        group: numeric group id.
    """

    user: int
    group: int


def write_atomically(
    path: Path, octets: bytes, *, mode: int = 0o600, owner: Owner | None = None, replace: bool = True
) -> None:
    """Write a file that is whole from the moment it has its name.

    Args:
        path: the file.
        octets: what it shall hold.
        mode: permission bits.
        owner: whom it shall belong to; None for the process's user.
        replace: whether a file of that name may be replaced.

    Raises:
        CannotCreateError: there is no such folder, or a file is in the way and `replace` is false.
        UnsafeFileError: we may not write there.
        IoError: writing failed; the old file, if there was one, is as it was. Where only the folder could not be
            synced it is the new one, and the message says so: a power cut may bring the old one back.
    """
    name = path.name
    try:
        with _folder(path.parent) as inside:
            temporary = f".{name}.{secrets.token_hex(8)}.tmp"
            try:
                _write_new(temporary, octets, mode, owner, inside)
                if replace:
                    os.rename(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)
                else:
                    os.link(temporary, name, src_dir_fd=inside, dst_dir_fd=inside, follow_symlinks=False)
                    os.unlink(temporary, dir_fd=inside)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=inside)
                raise
            _sync_folder(inside, path)
    except OSError as error:
        raise _cannot("write", path, error) from error


def read_bounded(path: Path, limit: int) -> bytes:
    """Return what a regular file holds.

    Args:
        path: the file; a link, a folder, a FIFO, a device is refused without waiting for it.
        limit: most octets that are taken.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: it is no regular file, is longer than the limit, or we may not read it.
        IoError: reading failed.
    """
    with _opened(path) as (descriptor, _):
        return _content(descriptor, path, limit)


def read_private(path: Path, limit: int, *, credential: bool = False) -> bytes:
    """Return what a file holds that nobody but its owner could read or change.

    The owner must be the process's user or root, or, for root, the owner of the folder. Mode bits of group and
    others must be clear (the mask of an access control list counts as the group's), and the folder closed to
    their writing.

    Args:
        path: the file.
        limit: most octets that are taken.
        credential: it was put there by the service manager, which lets a service's user read it by an access
            control list: the group may then have the right to read.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: the owner or a mode is not safe; the remedy is the command to run. Also as for `read_bounded`.
        IoError: reading failed.
    """
    with _opened(path) as (descriptor, inside):
        _check_private(path, os.fstat(descriptor), os.fstat(inside), 0o040 if credential else 0)
        return _content(descriptor, path, limit)


def check_private_folder(folder: Path) -> Owner:
    """Return the owner of a folder into which only its owner can write.

    Raises:
        FileNotFoundError: there is no such folder.
        UnsafeFileError: it belongs to neither the process's user nor root, or others may write there.
        IoError: it cannot be looked at.
    """
    try:
        with _folder(folder) as inside:
            found = os.fstat(inside)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _cannot("read", folder, error) from error
    _check_folder(folder, found)
    return Owner(found.st_uid, found.st_gid)


def close_folder(folder: Path) -> bool:
    """Close a folder of ours to other users, and return whether it was open to their reading.

    One that was open to their writing is refused: they may have put there what is taken for ours.

    Raises:
        FileNotFoundError: there is no such folder.
        UnsafeFileError: it belongs to neither the process's user nor root, others may write there, or its mode cannot
            be changed; the remedy is the command to run.
        IoError: it cannot be looked at.
    """
    check_private_folder(folder)
    try:
        with _folder(folder) as inside:
            mode = stat.S_IMODE(os.fstat(inside).st_mode)
            if not mode & _GROUP_OR_OTHERS:
                return False
            os.fchmod(inside, mode & ~_GROUP_OR_OTHERS)
    except OSError as error:
        raise UnsafeFileError(
            f"the folder {folder} is open to other users: {(error.strerror or '').lower()}",
            f"run chmod 700 {folder}",
        ) from error
    return True


@contextmanager
def locked(folder: Path, *, seconds: float = LOCK_SECONDS, owner: Owner | None = None) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: the folder; the lock is held on `.lock` in it.
        seconds: how long to wait for another holder.
        owner: whom a new `.lock` shall belong to; None for the process's user.

    Raises:
        TryAgainError: somebody else held it all that time.
        CannotCreateError, UnsafeFileError, IoError: as for `write_atomically`.
    """
    path = folder / LOCK_NAME
    try:
        with _folder(folder) as inside:
            descriptor = _lock_file(inside, owner)
    except OSError as error:
        raise _cannot("lock", path, error) from error
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(descriptor, path):
            if time.monotonic() >= deadline:
                raise TryAgainError(f"another process has held the lock {path} for {seconds:g} seconds", "try again")
            time.sleep(_LOCK_POLL_SECONDS)  # noqa: TID251 -- flock(2) waits for ever or not at all
        yield
    finally:
        _close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder below one that exists; one that is there already stays as it is.

    What root makes belongs to the owner of the folder above, so that a service's user can use it.

    Args:
        folder: the folder.
        mode: permission bits, of which the process's umask takes away.

    Raises:
        CannotCreateError, UnsafeFileError, IoError: as for `write_atomically`.
    """
    try:
        folder.mkdir(mode)
        if os.geteuid() == 0:
            above = folder.absolute().parent.stat()
            os.chown(folder, above.st_uid, above.st_gid, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise _cannot("make", folder, error) from error


def sweep(folder: Path, suffix: str) -> None:
    """Remove what killed writers left behind. Only for the holder of the folder's lock.

    Args:
        folder: the folder.
        suffix: end of the names of the files that are written under that lock.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and match["name"].endswith(suffix):
                with suppress(OSError):
                    Path(entry.path).unlink()


@contextmanager
def _folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        _close(descriptor)


def _close(descriptor: int) -> None:
    """Close what nothing was written to: there is nothing that an error could say is lost."""
    with suppress(OSError):
        os.close(descriptor)


def _sync_folder(inside: int, path: Path) -> None:
    try:
        os.fsync(inside)
    except OSError as error:
        # Whoever takes this for a change that was not made makes it twice.
        raise IoError(
            f"{path} is changed, but the disk does not confirm it: {(error.strerror or '').lower()}",
            "look into the system's log; do not repeat the change, the file has it",
        ) from error


def _write_new(name: str, octets: bytes, mode: int, owner: Owner | None, inside: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=inside)
    try:
        # Closed to others until it is theirs: first the owner, then the mode, then the content.
        if owner is not None:
            os.fchown(descriptor, owner.user, owner.group)
        os.fchmod(descriptor, mode)
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Yield descriptors of a regular file and of its folder."""
    try:
        with _folder(path.parent) as inside:
            # Opened without blocking, so that a FIFO cannot hold us; for a regular file that changes nothing.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path.name, flags, dir_fd=inside)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise UnsafeFileError(f"{path} is no regular file", "put a plain file in its place")
                yield descriptor, inside
            finally:
                _close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _cannot("read", path, error) from error


def _content(descriptor: int, path: Path, limit: int) -> bytes:
    pieces: list[bytes] = []
    left = limit + 1
    while left and (piece := os.read(descriptor, left)):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise UnsafeFileError(f"{path} is longer than {limit} octets", "put the right file in its place")
    return b"".join(pieces)


def _check_private(path: Path, file: os.stat_result, folder: os.stat_result, allowed: int) -> None:
    user = os.geteuid()
    safe_owners = {user, 0} | ({folder.st_uid} if user == 0 else set())
    if file.st_uid not in safe_owners:
        raise UnsafeFileError(
            f"{path} belongs to user {file.st_uid}", f"look who made it, then run chown {user} {path}"
        )
    forbidden = _GROUP_OR_OTHERS & ~allowed
    if file.st_mode & forbidden:
        mode = stat.S_IMODE(file.st_mode)
        raise UnsafeFileError(f"{path} has mode {mode:04o}, open to other users", f"run chmod 600 {path}")
    _check_folder(path.parent, folder)


def _check_folder(where: Path, folder: os.stat_result) -> None:
    user = os.geteuid()
    if user != 0 and folder.st_uid not in {user, 0}:
        raise UnsafeFileError(f"the folder {where} belongs to user {folder.st_uid}", f"run chown {user} {where}")
    if folder.st_mode & _WRITABLE_BY_OTHERS:
        mode = stat.S_IMODE(folder.st_mode)
        raise UnsafeFileError(
            f"the folder {where} has mode {mode:04o}, writable by other users", f"run chmod 700 {where}"
        )


def _lock_file(inside: int, owner: Owner | None) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(LOCK_NAME, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=inside)
    except FileExistsError:
        return os.open(LOCK_NAME, flags, dir_fd=inside)
    # Only a file that we have just made is given away: the owner of the folder may have put anything there before.
    if owner is not None:
        os.fchown(descriptor, owner.user, owner.group)
    return descriptor


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _cannot("lock", path, error) from error
    return True


def _cannot(verb: str, path: Path, error: OSError) -> BatvError:
    what = f"cannot {verb} {path}: {(error.strerror or str(error)).lower()}"
    remedy = _REMEDIES.get(error.errno or 0, "look into it and try again")
    match error.errno:
        case errno.EEXIST:
            return CannotCreateError(f"{path} exists already", "move it away first, or name another file")
        case errno.ELOOP | errno.EMLINK:
            return UnsafeFileError(f"{path} is a symbolic link", "put the file itself in its place")
        case errno.ENXIO:
            return UnsafeFileError(f"{path} is no regular file", "put a plain file in its place")
        case errno.EACCES | errno.EPERM:
            return UnsafeFileError(what, f"run this as the owner of the file, or give it to user {os.geteuid()}")
        case errno.EISDIR:
            return CannotCreateError(f"{path} is a folder", "move it away first, or name another file")
        case errno.ENOENT | errno.ENOTDIR | errno.EROFS | errno.ENAMETOOLONG if verb != "read":
            return CannotCreateError(what, remedy)
        case _:
            return IoError(what, remedy)
