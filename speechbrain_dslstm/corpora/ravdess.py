"""RAVDESS, speech part, audio only (Livingstone and Russo 2018).

Acted English sentences: 24 speakers, 2 sentences, 8 emotions, 1440 clips.
A file name such as ``03-01-05-01-02-01-12`` holds the modality (03 audio
only), the channel (01 speech), emotion, intensity, sentence, repetition and
actor (odd male, even female). Song and video files are passed over.
"""

from speechbrain_dslstm.corpora.clips import find_clips
from speechbrain_dslstm.corpora.manifest import select_labels

__all__ = ["records"]

NAME = "RAVDESS"
LICENSE = "CC-BY-NC-SA-4.0"
CITATION = (
    'S. R. Livingstone, F. A. Russo, "The Ryerson Audio-Visual Database of '
    'Emotional Speech and Song (RAVDESS)", PLoS ONE 13(5): e0196391, 2018.'
)
URL = "https://zenodo.org/records/1188976"

LABEL_SETS = {
    "8class": {
        "01": "neutral",
        "02": "calm",
        "03": "happiness",
        "04": "sadness",
        "05": "anger",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
    "4class": {
        "05": "anger",
        "03": "happiness",
        "01": "neutral",
        "04": "sadness",
    },
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


def records(data_folder, label_set=DEFAULT_LABEL_SET):
    """Read RAVDESS' file names.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds the clips, flat or in subfolders, as WAV or FLAC.
    label_set : str
        ``8class`` or ``4class``.

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
    >>> (folder / "03-01-05-01-02-01-12.wav").touch()
    >>> [record] = records(folder)
    >>> record["speaker"], record["session"], record["emotion"]
    ('12', '3', 'anger')
    """
    labels = select_labels(LABEL_SETS, label_set)
    found = []
    for match, path in find_clips(data_folder, PATTERN, NAME, HINT):
        code, actor = match["emotion"], match["speaker"]
        if code in LABEL_SETS["8class"] and code not in labels:
            continue
        found.append(
            {
                "id": path.stem,
                "path": path,
                "emotion": labels.get(code, code),
                "speaker": actor,
                "gender": "M" if int(actor) % 2 else "F",
                # six groups of four actors
                "session": str(1 + (int(actor) - 1) // 4),
                "dialogue": "",
                "text_id": match["text"],
                "text": TEXTS[match["text"]],
            }
        )
    return found
