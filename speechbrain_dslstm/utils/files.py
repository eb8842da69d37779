"""Files that are there whole or not at all, and errors that name them."""

import errno
import os
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

__all__ = ["name_errors", "replace_file", "sync"]

# Seconds after which a file aside has been left by a kill
OLD = 60
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def name_errors(path):
    """Have an error of writing say which file, and what to do.

    Python names the file when it cannot be opened, but not when the disk
    fills up later.

    Arguments
    ---------
    path : str or pathlib.Path
        The file that is written inside.

    Yields
    ------
    None

    Raises
    ------
    OSError
        Of the same kind, with the file's name.

    Example
    -------
    >>> with name_errors("log.txt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
        ...
    OSError: [Errno 28] No space left on device; make room and run the same command again: 'log.txt'
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            reason += "; make room and run the same command again"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def sync(path):
    """Have the kernel write a file or folder to the disk now.

    Arguments
    ---------
    path : str or pathlib.Path
        It exists.

    Example
    -------
    >>> sync("nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path, content):
    """Write a file aside, sync it and put it in place.

    Several processes may write the same file at once: each has its own file
    aside, and the last one wins.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; its folder is made if needed.
    content : str or bytes
        All of it.

    Raises
    ------
    OSError
        Names the file; what stood there before is left as it was.

    Example
    -------
    >>> path = getfixture("tmp_path") / "run.json"
    >>> replace_file(path, "{}")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('{}', 1)
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode("utf-8")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        for left_over in path.parent.glob(f".{path.name}.*.tmp"):
            _remove_old(left_over)
        sync(path.parent)


def _remove_old(aside):
    """Remove a file aside unless it may still be written to."""
    try:
        if time.time() - aside.stat().st_mtime > OLD:
            aside.unlink()
    except FileNotFoundError:
        # Put in place, or removed by another process
        return
