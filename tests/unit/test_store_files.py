"""Files are whole or not there, and secrets come from safe files only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.errors import CannotCreateError, IoError, TryAgainError, UnsafeFileError
from batv.store.files import (
    Owner,
    check_private_folder,
    locked,
    make_folder,
    read_bounded,
    read_private,
    sweep,
    write_atomically,
)
from tests.support.command import child_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY: Final = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Act as the user nobody."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def names(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_written_file_is_closed_to_others(tmp_path: Path) -> None:
    """A ring must not be readable by others, whatever the umask is."""
    path = tmp_path / "a"
    old = os.umask(0)
    try:
        write_atomically(path, b"content")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"a"}


def test_a_file_that_must_be_new_replaces_nothing(tmp_path: Path) -> None:
    """`batv init` and exported secrets must never overwrite, and leave no litter when they refuse."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(CannotCreateError, match="exists already"):
        write_atomically(path, b"new", replace=False)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}
    write_atomically(tmp_path / "b", b"new", replace=False)
    assert names(tmp_path) == {"a", "b"}


def test_writing_into_a_missing_folder_says_to_make_it(tmp_path: Path) -> None:
    """A mistyped folder is told apart from a full disk."""
    with pytest.raises(CannotCreateError, match="make the folder first"):
        write_atomically(tmp_path / "no" / "a", b"")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """What stands in the way is named."""
    (tmp_path / "a").mkdir()
    with pytest.raises(CannotCreateError, match="is a folder"):
        write_atomically(tmp_path / "a", b"")
    assert names(tmp_path) == {"a"}


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path: Path) -> None:
    """A write that fails half way must not cost the ring that was there."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(IoError, match="cannot write"):
            write_atomically(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "rename"])
def test_a_writer_killed_at_any_step_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    """Power and patience end at any moment: the name must then stand for the old content, whole."""
    path = tmp_path / "a.ring"
    path.write_bytes(b"old")
    assert _killed_at(call, 1, path) == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    sweep(tmp_path, ".ring")
    assert names(tmp_path) == {"a.ring"}


def test_a_writer_killed_after_the_rename_leaves_the_new_file(tmp_path: Path) -> None:
    """From the rename on the name stands for the new content, whole."""
    path = tmp_path / "a.ring"
    path.write_bytes(b"old")
    assert _killed_at("fsync", 2, path) == -signal.SIGKILL
    assert path.read_bytes() == b"new"


def _killed_at(call: str, count: int, path: Path) -> int:
    """Write in a process that is killed just before a system call; return its status."""
    script = f"""
import os, signal, sys
from pathlib import Path
from batv.store.files import write_atomically
real, left = os.{call}, [{count}]
def stop(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
os.{call} = stop
write_atomically(Path(sys.argv[1]), b"new")
"""
    environment = child_environment()
    return subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False).returncode


def test_only_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    """Cleaning up must not touch anybody's files."""
    for name in (".a.ring.0123456789abcdef.tmp", ".lock", "a.ring", ".b.toml.0123456789abcdef.tmp", ".a.ring.tmp"):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path, ".ring")
    assert names(tmp_path) == {".lock", "a.ring", ".b.toml.0123456789abcdef.tmp", ".a.ring.tmp"}


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO in the place of a ring would hold the service for ever."""
    fifo, folder, link, unix = (tmp_path / name for name in ("fifo", "folder", "link", "unix"))
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(unix))
        for path in (fifo, folder, unix):
            with pytest.raises(UnsafeFileError, match="is no regular file"):
                read_bounded(path, 10)
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        read_bounded(link, 10)
    (tmp_path / "target").unlink()
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        read_bounded(link, 10)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    """A huge file must not fill the memory."""
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert read_bounded(path, 10) == b"0123456789"
    with pytest.raises(UnsafeFileError, match="longer than 9 octets"):
        read_bounded(path, 9)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "b", 9)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644, 0o601, 0o610])
def test_a_secret_that_others_could_reach_is_refused_with_the_chmod_to_run(tmp_path: Path, mode: int) -> None:
    """Whoever reads a ring can have bounces delivered; whoever writes it can stop all of them."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(UnsafeFileError, match=rf"mode {mode:04o}.*run chmod 600 {path}"):
        read_private(path, 10)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_that_only_its_owner_can_read_is_taken(tmp_path: Path, mode: int) -> None:
    """These two are the modes that the documentation names."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(mode)
    assert read_private(path, 10) == b"x"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_secret_in_a_folder_that_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can write in the folder can put another ring in the place of ours."""
    folder = tmp_path / "keys"
    folder.mkdir()
    path = folder / "a"
    path.touch(0o600)
    folder.chmod(mode)
    with pytest.raises(UnsafeFileError, match=rf"the folder {folder} has mode {mode:04o}.*run chmod 700 {folder}"):
        read_private(path, 10)


def test_a_credential_may_be_readable_by_its_group(tmp_path: Path) -> None:
    """The service manager lets a service's user in by an access list, whose mask shows as the group's right."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(0o440)
    assert read_private(path, 10, credential=True) == b"x"
    path.chmod(0o444)
    with pytest.raises(UnsafeFileError):
        read_private(path, 10, credential=True)


@pytest.mark.root
def test_a_secret_of_another_user_is_refused(open_folder: Path) -> None:
    """A user who owns the file could change it at any time."""
    path = open_folder / "a"
    path.touch(0o600)
    os.chown(path, 1234, 1234)
    with pytest.raises(UnsafeFileError, match=r"belongs to user 1234.*chown 0 "):
        read_private(path, 10)


@pytest.mark.root
def test_root_reads_what_belongs_to_the_owner_of_the_folder(open_folder: Path) -> None:
    """An administrator runs `batv key list` on rings that belong to the service's user."""
    path = open_folder / "a"
    path.touch(0o600)
    os.chown(path, 1234, 1234)
    os.chown(open_folder, 1234, 1234)
    assert read_private(path, 10) == b""
    assert check_private_folder(open_folder) == Owner(1234, 1234)


@pytest.mark.root
def test_a_secret_that_we_may_not_read_names_the_user(open_folder: Path) -> None:
    """Root made the ring, the service runs as another user: the message must say for whom to change it."""
    path = open_folder / "a"
    path.touch(0o600)
    with as_nobody(), pytest.raises(UnsafeFileError, match=f"permission denied.*give it to user {NOBODY}"):
        read_private(path, 10)


@pytest.mark.root
def test_a_folder_of_another_user_is_refused(open_folder: Path) -> None:
    """The folder's owner can put any file there."""
    path = open_folder / "a"
    path.touch(0o600)
    os.chown(path, NOBODY, NOBODY)
    os.chown(open_folder, 1234, 1234)
    with as_nobody(), pytest.raises(UnsafeFileError, match=f"belongs to user 1234.*chown {NOBODY}"):
        read_private(path, 10)


@pytest.mark.root
def test_writing_where_we_may_not_is_a_matter_of_permission(open_folder: Path) -> None:
    """Exit status 77 tells scripts to run as somebody else."""
    with as_nobody(), pytest.raises(UnsafeFileError) as caught:
        write_atomically(open_folder / "a", b"")
    assert caught.value.exit_status == 77


@pytest.mark.root
def test_what_root_makes_belongs_to_the_owner_of_the_folder_above(open_folder: Path) -> None:
    """Else the service's user could not use what `batv init` made as root."""
    os.chown(open_folder, 1234, 1235)
    make_folder(open_folder / "keys")
    found = (open_folder / "keys").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1235, 0o700)


def test_a_held_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    """A command must not hang because another one does."""
    with locked(tmp_path), pytest.raises(TryAgainError, match="try again") as caught, locked(tmp_path, seconds=0.1):
        pass
    assert caught.value.exit_status == 75
    with locked(tmp_path, seconds=0):
        assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """A lock that outlives its holder would need an administrator."""
    script = """
import sys
from pathlib import Path
from batv.store.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TryAgainError), locked(tmp_path, seconds=0):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path, seconds=0):
        pass


def test_a_lock_behind_a_link_is_refused(tmp_path: Path) -> None:
    """Following it would open, as root, whatever the folder's owner chose."""
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match="symbolic link"), locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
