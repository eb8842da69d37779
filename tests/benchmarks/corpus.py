"""Real clips for the benchmarks: EMO-DB, where it is."""

import os
from pathlib import Path

__all__ = ["emodb_folder"]


def emodb_folder():
    """Folder of EMO-DB.

    Returns
    -------
    pathlib.Path or None
        Below DSLSTM_SPEECH_DATA, or beside the checkout in shared/data; None
        where it is not.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DSLSTM_SPEECH_DATA", beside)) / "emodb"
    return folder if folder.is_dir() else None
