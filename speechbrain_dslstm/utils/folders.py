"""Walk a folder as a person sees it: without hidden files and the trash."""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_hidden", "walk_folder"]

# Trash, previews and leftovers of systems and storage boxes, in lower case
TRASH = {
    "$recycle.bin",
    "recycler",
    "#recycle",
    "@eadir",
    "__macosx",
    "lost+found",
    "system volume information",
    "trash",
}


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is hidden or that of a trash folder."""
    return name.startswith(".") or name.lower() in TRASH


def walk_folder(
    folder: str | Path, errors: list[OSError] | None = None
) -> Iterator[tuple[Path, bool]]:
    """Yield each file below a folder, and whether it is hidden.

    A file is hidden if its name, or that of a folder between it and ``folder``,
    is. Links are followed, each real folder is read once. Folders that cannot
    be listed are added to ``errors``.
    """
    seen = set()
    note = None if errors is None else errors.append
    hidden_folders = set()
    for inside, subfolders, files in os.walk(
        folder, followlinks=True, onerror=note
    ):
        real = os.path.realpath(inside)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        hidden = inside in hidden_folders
        hidden_folders |= {
            os.path.join(inside, name)
            for name in subfolders
            if hidden or is_hidden(name)
        }
        for name in sorted(files):
            yield Path(inside, name), hidden or is_hidden(name)
