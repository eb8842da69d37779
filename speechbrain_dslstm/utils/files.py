"""Write files whole or not at all, with errors that name the file."""

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = [
    "check_output",
    "name_errors",
    "new_file",
    "new_folder",
    "replace_file",
    "replacement",
    "sync",
]

# Seconds after which a temporary file must be a leftover of a killed process
OLD = 60
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def name_errors(path: str | Path) -> Iterator[None]:
    """Add the file's name, and advice on a full disk, to an OSError.

    Python names the file when it cannot be opened, but not when the disk
    fills up later.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            reason += "; make room and run the same command again"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def sync(path: str | Path) -> None:
    """Flush a file or folder to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacement(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces ``path`` at the end.

    If the block raises, the temporary file is removed and ``path`` stays as it
    was. Several processes may replace one file at once: the last one wins. An
    OSError names ``path``. ``durable=False``, for caches of many files, neither
    syncs the file to the disk nor removes leftovers of killed processes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            # By the clock of the disk, which may be another computer's
            now = os.stat(temporary).st_mtime
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            pattern = f".{glob.escape(path.name)}.*.tmp"
            for leftover in path.parent.glob(pattern):
                _remove_old(leftover, now)
            sync(path.parent)


def replace_file(
    path: str | Path, content: str | bytes, durable: bool = True
) -> None:
    """Replace a file, or create it, by text (as UTF-8) or bytes; see ``replacement``."""
    if isinstance(content, str):
        content = content.encode("utf-8")
    with replacement(path, durable) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path``, which must not exist.

    If the block raises, nothing is left.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise FileExistsError(
            f"{path} exists already: give another name, or remove it"
        )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with name_errors(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with name_errors(path):
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Refuse, before any work, an output that cannot or must not be written.

    Only with ``overwrite`` may a file stand there already; a folder, a device
    or a missing parent folder is an error in any case.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"no folder {path.parent} for the file", str(path)
        )
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise FileExistsError(
            errno.EEXIST, "this is no regular file", str(path)
        )
    if not overwrite:
        raise FileExistsError(
            errno.EEXIST,
            "the file exists; choose another name, or overwrite it (--force, "
            "overwrite=True)",
            str(path),
        )


@contextmanager
def new_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path in a folder of its own; the file written there becomes ``path``.

    It appears whole or not at all, and never in the place of a file that was
    there, unless ``overwrite`` is set. Files that the block writes beside it
    are removed with the folder. The name is that of ``path``, because writers
    choose the format by it.
    """
    path = Path(path)
    check_output(path, overwrite)
    if path.is_symlink():
        path = path.resolve()
    prefix = f".{path.name}."
    with name_errors(path):
        with TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            yield temporary
            sync(temporary)
            if overwrite:
                os.replace(temporary, path)
            else:
                _place(temporary, path)
        sync(path.parent)


def _place(temporary: Path, path: Path) -> None:
    """Move a file to a name that is free, even if another process takes it now."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    # A file system without hard links
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(
                errno.EEXIST, "the file exists", str(path)
            ) from None
        os.replace(temporary, path)


def _remove_old(temporary: Path, now: float) -> None:
    """Remove a temporary file unless it may still be written to."""
    # Another process may have put it in place or removed it
    with suppress(FileNotFoundError):
        if now - temporary.stat().st_mtime > OLD:
            temporary.unlink()
