"""EMO-DB, the Berlin Database of Emotional Speech (Burkhardt et al. 2005).

Acted German sentences: 10 speakers, 10 sentences, 7 emotions, 535 clips.
A file name such as ``03a01Wa`` holds the speaker (03), the sentence (a01), the
emotion's German initial (W) and the version (a).
"""

import re
from pathlib import Path

from speechbrain_dslstm.corpora.clips import read_clips

__all__ = ["records"]

NAME = "EMO-DB"
LICENSE = "CC0-1.0"
CITATION = (
    "F. Burkhardt, A. Paeschke, M. Rolfes, W. F. Sendlmeier, B. Weiss, "
    '"A database of German emotional speech", Proc. Interspeech 2005, '
    "pp. 1517-1520."
)
URL = "http://emodb.bilderbar.info"

EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "N": "neutral",
    "T": "sadness",
}
LABEL_SETS = {
    "7class": EMOTIONS,
    "4class": {code: EMOTIONS[code] for code in "WFNT"},
}
DEFAULT_LABEL_SET = "7class"

GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "M"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "F"),
}
# pairs of all speakers, so that a partial copy has the same sessions
SESSIONS = {s: str(1 + i // 2) for i, s in enumerate(sorted(GENDERS))}
TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",  # codespell:ignore sie
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem "
    "Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",  # codespell:ignore unter
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder "  # codespell:ignore sie
    "runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und "
    "habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",  # codespell:ignore sie
}
PATTERN = (
    f"(?P<speaker>{'|'.join(GENDERS)})(?P<text>[ab][0-9]{{2}})"
    "(?P<emotion>[A-Z])(?P<version>[a-z])"
)
HINT = f"files such as wav/03a01Wa.wav, from {URL}"


def records(
    data_folder: str | Path, label_set: str = DEFAULT_LABEL_SET
) -> list[dict]:
    """Read EMO-DB's file names; ``label_set`` is ``7class`` or ``4class``.

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
        "text": TEXTS.get(match["text"], ""),
    }
