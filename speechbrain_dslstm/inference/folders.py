"""Find the audio files of folders, and say what was passed over and why."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechbrain_dslstm.audio.checks import AudioError
from speechbrain_dslstm.audio.inputs import TAKEN, is_one_input
from speechbrain_dslstm.audio.kinds import (
    ENDINGS,
    MEDIA_ENDINGS,
    REMEDY,
    has_ffmpeg,
)
from speechbrain_dslstm.utils.folders import walk_folder

__all__ = ["FoundAudio", "find_audio", "reason_to_pass_over", "summarize"]

NOT_AUDIO = "not audio"
HIDDEN = "hidden"
UNREADABLE = "unreadable folders"
NO_FFMPEG = f"that require {REMEDY}"


class FoundAudio(list):
    """Audio files, and ``passed_over``: other files by the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_over: dict[str, list[Path]] = {}

    def pass_over(self, reason: str, path: Path) -> None:
        """Note a file that is left out."""
        self.passed_over.setdefault(reason, []).append(path)

    @property
    def summary(self) -> str:
        """One line with the number of files for each reason, "" for none."""
        return summarize(self.passed_over)


def summarize(passed_over: dict[str, list[Path]]) -> str:
    """One line for files by the reason why they were passed over."""
    parts = [
        f"{len(paths)} {reason} (such as {paths[0].name})"
        for reason, paths in passed_over.items()
    ]
    return f"passed over: {', '.join(parts)}" if parts else ""


def find_audio(paths: Any) -> FoundAudio:
    """List audio inputs: each as it is, and those below each folder, sorted.

    A link to nothing is listed, too, and becomes an error when it is read. A
    folder without audio files, or no input at all, raises FileNotFoundError.
    """
    if is_one_input(paths):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise AudioError(f"{TAKEN}; got {paths!r}", "of a wrong type")
    found = FoundAudio()
    for given in paths:
        path = _as_path(given)
        if path is None:
            found.append(given)
        elif os.path.isdir(path):
            _search(path, found)
        else:
            found.append(path)
    if not found:
        raise FileNotFoundError("no audio files were given")
    return found


def reason_to_pass_over(path: Path, hidden: bool = False) -> str | None:
    """Why a file of a folder is not classified; None if it is."""
    ending = path.suffix.lower()
    if hidden:
        return HIDDEN
    if ending in ENDINGS or (ending in MEDIA_ENDINGS and has_ffmpeg()):
        return None
    return NO_FFMPEG if ending in MEDIA_ENDINGS else NOT_AUDIO


def _as_path(given):
    if isinstance(given, str | os.PathLike):
        return Path(os.fsdecode(given))
    return None


def _search(folder: Path, found: FoundAudio) -> None:
    """Add the audio files below a folder."""
    errors, inside, ours = [], [], FoundAudio()
    for path, hidden in walk_folder(folder, errors):
        reason = reason_to_pass_over(path, hidden)
        if reason is None:
            inside.append(path)
        else:
            ours.pass_over(reason, path)
    for error in errors:
        ours.pass_over(UNREADABLE, Path(error.filename))
    if not inside:
        rest = f" ({ours.summary})" if ours.passed_over else ""
        raise FileNotFoundError(f"no audio files in {folder}{rest}")
    found += sorted(inside)
    for reason, paths in ours.passed_over.items():
        found.passed_over.setdefault(reason, []).extend(paths)
