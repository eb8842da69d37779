"""RAVDESS, speech part, audio only (Livingstone and Russo 2018).

Acted English sentences: 24 speakers, 2 sentences, 8 emotions, 1440 clips.
A file name such as ``03-01-05-01-02-01-12`` holds the modality (03 audio
only), the channel (01 speech), emotion, intensity, sentence, repetition and
actor (odd male, even female). Song and video files are skipped.
"""

import re
from pathlib import Path

from speechbrain_dslstm.corpora.clips import read_clips

__all__ = ["records"]

NAME = "RAVDESS"
LICENSE = "CC-BY-NC-SA-4.0"
CITATION = (
    'S. R. Livingstone, F. A. Russo, "The Ryerson Audio-Visual Database of '
    'Emotional Speech and Song (RAVDESS)", PLoS ONE 13(5): e0196391, 2018.'
)
URL = "https://zenodo.org/records/1188976"

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
LABEL_SETS = {
    "8class": EMOTIONS,
    "4class": {code: EMOTIONS[code] for code in ("05", "03", "01", "04")},
}
DEFAULT_LABEL_SET = "8class"

TEXTS = {
    "01": "Kids are talking by the door",
    "02": "Dogs are sitting by the door",
}
PATTERN = (
    "03-01-(?P<emotion>[0-9]{2})-0[12]-(?P<text>0[12])-0[12]"
    "-(?P<speaker>0[1-9]|1[0-9]|2[0-4])"
)
HINT = f"files such as Actor_12/03-01-05-01-02-01-12.wav, from {URL}"


def records(
    data_folder: str | Path, label_set: str = DEFAULT_LABEL_SET
) -> list[dict]:
    """Read RAVDESS' file names; ``label_set`` is ``8class`` or ``4class``.

    The clips may lie flat or in subfolders. See ``clips.read_clips``.
    """
    return read_clips(
        data_folder, NAME, PATTERN, HINT, LABEL_SETS, label_set, _fields
    )


def _fields(match: re.Match) -> dict[str, str]:
    """Look up the fields of a record that follow from a base name."""
    actor = int(match["speaker"])
    return {
        "gender": "M" if actor % 2 else "F",
        # six groups of four actors
        "session": str(1 + (actor - 1) // 4),
        "text": TEXTS[match["text"]],
    }
