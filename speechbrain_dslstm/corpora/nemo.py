"""nEMO, emotional speech in Polish (Christop 2024).

Acted Polish sentences: 9 speakers, 90 sentences, 6 emotions, 4481 clips.
A file name such as ``EB0_anger_1`` holds speaker, emotion and sentence.
"""

from speechbrain_dslstm.corpora.clips import find_clips
from speechbrain_dslstm.corpora.manifest import select_labels

__all__ = ["records"]

NAME = "nEMO"
LICENSE = "CC-BY-NC-SA-4.0"
CITATION = (
    'I. Christop, "nEMO: Dataset of Emotional Speech in Polish", '
    "Proc. LREC-COLING 2024, pp. 12111-12116."
)
URL = "https://github.com/amu-cai/nEMO"

LABEL_SETS = {
    "4class": {
        "anger": "anger",
        "happiness": "happiness",
        "neutral": "neutral",
        "sadness": "sadness",
    },
    "6class": {
        "anger": "anger",
        "fear": "fear",
        "happiness": "happiness",
        "neutral": "neutral",
        "sadness": "sadness",
        "surprised": "surprise",
    },
}
DEFAULT_LABEL_SET = "4class"

GENDERS = {
    "EB0": "F",
    "IC0": "F",
    "KD0": "F",
    "KS0": "M",
    "MK0": "F",
    "MP0": "M",
    "SM0": "M",
    "TP0": "M",
    "WR0": "M",
}
# groups of three, from the published list: a partial copy has the same ones
SESSIONS = {s: str(1 + i // 3) for i, s in enumerate(sorted(GENDERS))}
PATTERN = (
    f"(?P<speaker>{'|'.join(GENDERS)})_(?P<emotion>[a-z]+)_(?P<text>[0-9]+)"
)
HINT = f"files such as EB0_anger_1.wav, from {URL}"


def records(data_folder, label_set=DEFAULT_LABEL_SET):
    """Read nEMO's file names.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds the clips, flat or in subfolders, as WAV or FLAC.
    label_set : str
        ``4class`` or ``6class``.

    Returns
    -------
    list of dict
        Records for ``build_manifest``.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        The folder has no such files, or the label set is unknown.

    Example
    -------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / "EB0_surprised_7.wav").touch()
    >>> [record] = records(folder, "6class")
    >>> record["speaker"], record["text_id"], record["emotion"]
    ('EB0', '7', 'surprise')
    """
    labels = select_labels(LABEL_SETS, label_set)
    found = []
    for match, path in find_clips(data_folder, PATTERN, NAME, HINT):
        code, speaker = match["emotion"], match["speaker"]
        if code in LABEL_SETS["6class"] and code not in labels:
            continue
        found.append(
            {
                "id": path.stem,
                "path": path,
                "emotion": labels.get(code, code),
                "speaker": speaker,
                "gender": GENDERS[speaker],
                "session": SESSIONS[speaker],
                "dialogue": "",
                "text_id": match["text"],
                "text": "",
            }
        )
    return found
