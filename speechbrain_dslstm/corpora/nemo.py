"""nEMO, emotional speech in Polish (Christop 2024).

Acted Polish sentences: 9 speakers, 90 sentences, 6 emotions, 4481 clips.
A file name such as ``EB0_anger_1`` holds speaker, emotion and sentence.
"""

import re
from pathlib import Path

from speechbrain_dslstm.corpora.clips import read_clips

__all__ = ["records"]

NAME = "nEMO"
LICENSE = "CC-BY-NC-SA-4.0"
CITATION = (
    'I. Christop, "nEMO: Dataset of Emotional Speech in Polish", '
    "Proc. LREC-COLING 2024, pp. 12111-12116."
)
URL = "https://github.com/amu-cai/nEMO"

EMOTIONS = {
    "anger": "anger",
    "fear": "fear",
    "happiness": "happiness",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprised": "surprise",
}
FOUR = ("anger", "happiness", "neutral", "sadness")
LABEL_SETS = {
    "4class": {code: EMOTIONS[code] for code in FOUR},
    "6class": EMOTIONS,
}
DEFAULT_LABEL_SET = "4class"

GENDERS = {
    **dict.fromkeys(("EB0", "IC0", "KD0", "MK0"), "F"),
    **dict.fromkeys(("KS0", "MP0", "SM0", "TP0", "WR0"), "M"),
}
# groups of three of all speakers, so that a partial copy has the same sessions
SESSIONS = {s: str(1 + i // 3) for i, s in enumerate(sorted(GENDERS))}
PATTERN = (
    f"(?P<speaker>{'|'.join(GENDERS)})_(?P<emotion>[a-z]+)_(?P<text>[0-9]+)"
)
HINT = f"files such as EB0_anger_1.wav, from {URL}"


def records(
    data_folder: str | Path, label_set: str = DEFAULT_LABEL_SET
) -> list[dict]:
    """Read nEMO's file names; ``label_set`` is ``4class`` or ``6class``.

    The clips may lie flat or in subfolders. See ``clips.read_clips``.
    """
    return read_clips(
        data_folder, NAME, PATTERN, HINT, LABEL_SETS, label_set, _fields
    )


def _fields(match: re.Match) -> dict[str, str]:
    """Look up the fields of a record that follow from a base name."""
    speaker = match["speaker"]
    return {
        "gender": GENDERS[speaker],
        "session": SESSIONS[speaker],
        "text": "",
    }
