"""Files that are there whole or not at all, and errors that name them."""

import errno
import os
import uuid
from contextlib import contextmanager
from pathlib import Path

__all__ = ["name_errors", "replace_file", "sync"]

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


def replace_file(path, text):
    """Write a text file aside, sync it and put it in place.

    Several processes may write the same file at once: each has its own file
    aside, and the last one wins.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; its folder is made if needed.
    text : str
        All of its content.

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
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        sync(path.parent)
