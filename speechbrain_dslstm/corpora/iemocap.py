"""IEMOCAP, read from its release tree (Busso et al. 2008).

Five dyadic sessions of two speakers, improvised and scripted. Labels come from
``SessionN/dialog/EmoEvaluation/*.txt``, words from
``SessionN/dialog/transcriptions/*.txt``, audio from
``SessionN/sentences/wav/DIALOGUE/TURN.wav``. In a turn such as
``Ses03M_impro05a_F012`` the first M or F says who wore the markers; the
speaker is the letter before the last three digits, here Ses03F.

``iemocap_annotations`` reads the text files.
"""

import re
from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.clips import select_labels
from speechbrain_dslstm.corpora.iemocap_annotations import (
    is_dialogue,
    read_evaluation,
    read_transcription,
)
from speechbrain_dslstm.corpora.transcripts import normalise_text

__all__ = ["records", "left_out", "compare_counts"]

logger = get_logger(__name__)
NAME = "IEMOCAP"
LICENSE = "IEMOCAP release licence: research use, on request, no redistribution"
CITATION = (
    "C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, "
    'J. N. Chang, S. Lee, S. S. Narayanan, "IEMOCAP: Interactive emotional '
    'dyadic motion capture database", Language Resources and Evaluation '
    "42(4), pp. 335-359, 2008."
)
URL = "https://sail.usc.edu/iemocap"
SIX = {
    "ang": "anger",
    "exc": "excitement",
    "fru": "frustration",
    "hap": "happiness",
    "neu": "neutral",
    "sad": "sadness",
}
FIVE = {code: emotion for code, emotion in SIX.items() if code != "fru"}
LABEL_SETS = {
    "4class": FIVE | {"exc": "happiness"},
    "4class-no-exc": {c: emotion for c, emotion in FIVE.items() if c != "exc"},
    "5class": FIVE,
    "6class": SIX,
}
DEFAULT_LABEL_SET = "4class"
# options of the annotators in EmoEvaluation, and their codes
VOTES = {
    "Anger": "ang",
    "Disgust": "dis",
    "Excited": "exc",
    "Fear": "fea",
    "Frustration": "fru",
    "Happiness": "hap",
    "Neutral": "neu",
    "Neutral state": "neu",
    "Other": "oth",
    "Sadness": "sad",
    "Surprise": "sur",
}
CODES = "ang dis exc fea fru hap neu oth sad sur xxx".split()
# utterances of each session of the complete corpus in the default label set
COUNTED = ("anger", "happiness", "neutral", "sadness", "F", "M")
COUNTS = {
    "Ses01": (229, 278, 384, 194, 528, 557),
    "Ses02": (137, 327, 362, 197, 481, 542),
    "Ses03": (240, 286, 320, 305, 522, 629),
    "Ses04": (327, 303, 258, 143, 528, 503),
    "Ses05": (170, 442, 384, 245, 590, 651),
}
TREE = "Session1..5/dialog/EmoEvaluation/*.txt"
HINT = f"IEMOCAP_full_release with {TREE} (licensed; see {URL})"
TURN_NAME = re.compile(r"((Ses0[1-5])[FM]_(?:impro|script)\w+)_([FM])\d{3}")


def records(
    data_folder: str | Path,
    label_set: str = DEFAULT_LABEL_SET,
    improvised_only: bool = False,
) -> list[dict]:
    """Read IEMOCAP's evaluations and transcriptions into records.

    ``data_folder`` is ``IEMOCAP_full_release`` or the folder that holds it;
    ``label_set`` is ``4class`` (excitement counts as happiness),
    ``4class-no-exc``, ``5class`` or ``6class``.
    """
    found, silent, faults = _read(data_folder, label_set, improvised_only)
    malformed = [
        f"{one['where']}: {one['line']}" for one in faults if "line" in one
    ]
    for what, names in (
        ("malformed turns skipped", malformed),
        ("turns without a transcription kept", silent),
    ):
        if names:
            count, first = len(names), names[0]
            logger.warning("%s: %d %s, such as %s", NAME, count, what, first)
    return found


def left_out(
    data_folder: str | Path,
    label_set: str = DEFAULT_LABEL_SET,
    improvised_only: bool = False,
) -> list[dict]:
    """List what ``records`` leaves out, for the same arguments.

    Each dict has the "id" of the turn, dialogue or session (empty for a
    malformed line), the "reason", and "where" it is found, as ``file:line``
    below ``data_folder``.
    """
    faults = _read(data_folder, label_set, improvised_only)[2]
    keys = ("id", "reason", "where")
    found = [{key: fault[key] for key in keys} for fault in faults]
    files = _evaluation_files(Path(data_folder))
    there = {evaluation.parents[2].name for evaluation in files}
    for session in COUNTS:
        folder = f"Session{session[-1]}"
        if folder not in there:
            reason = "the session has no evaluation files"
            found.append({"id": session, "reason": reason, "where": folder})
    return found


def _read(
    data_folder: str | Path, label_set: str, improvised_only: bool
) -> tuple[list[dict], list[str], list[dict]]:
    """Return the records, the ids of those without words, and the faults."""
    labels = select_labels(LABEL_SETS, label_set)
    data_folder = Path(data_folder)
    found, silent, faults = [], [], []
    for evaluation in _evaluation_files(data_folder):
        place = evaluation.relative_to(data_folder).as_posix()
        reason = None
        if not is_dialogue(evaluation.stem):
            reason = "not the name of a dialogue"
        elif improvised_only and "impro" not in evaluation.stem:
            reason = "scripted, but only improvised dialogues are wanted"
        if reason:
            row = {"id": evaluation.stem, "reason": reason, "where": place}
            faults.append(row)
            continue
        session_folder = evaluation.parents[2]
        said = read_transcription(
            session_folder / "dialog" / "transcriptions" / evaluation.name
        )
        for turn in read_evaluation(evaluation):
            name, code = turn["id"], turn["code"]
            where = f"{place}:{turn['number']}"
            row = {"id": name, "where": where}
            match = TURN_NAME.fullmatch(name)
            if match is None:
                reason = "not a turn of IEMOCAP" if name else "malformed"
                faults.append({**row, "reason": reason, "line": turn["line"]})
                continue
            if code in CODES and code not in labels:
                reason = f"label {code} is not in {label_set}"
                faults.append({**row, "reason": reason})
                continue
            if turn["unrated"]:
                unrated = ", ".join(turn["unrated"])
                reason = f"kept, but without {unrated}"
                faults.append({**row, "reason": reason})
            dialogue, session, gender = match.groups()
            if name not in said:
                silent.append(name)
            text = said.get(name, "")
            wavs = session_folder / "sentences" / "wav"
            found.append(
                {
                    "id": name,
                    "where": where,
                    "path": wavs / dialogue / f"{name}.wav",
                    "emotion": labels.get(code, code),
                    "speaker": session + gender,
                    "gender": gender,
                    "session": session,
                    "dialogue": dialogue,
                    # a turn without words counts as a sentence of its own
                    "text_id": normalise_text(text) or name,
                    "text": text,
                    "votes": turn["votes"],
                    **turn["ratings"],
                }
            )
    return found, silent, faults


def _evaluation_files(data_folder: Path) -> list[Path]:
    """List the evaluation files of all sessions that are there, sorted."""
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"{NAME}: no folder {data_folder}; expected {HINT}"
        )
    for root in (data_folder, data_folder / "IEMOCAP_full_release"):
        files = sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/*.txt"))
        # macOS leaves a ._name.txt beside each file on foreign disks
        files = [file for file in files if not file.name.startswith(".")]
        if files:
            return files
    raise ValueError(f"{NAME}: {data_folder} has no {TREE}; expected {HINT}")


def compare_counts(
    entries: dict[str, dict],
    label_set: str = DEFAULT_LABEL_SET,
    improvised_only: bool = False,
) -> list[str]:
    """Log and list the differences of a copy from the complete corpus.

    Only the default label set with all dialogues has a table of counts; the
    list is empty for the others.

    >>> compare_counts({})[0]
    'Ses01 missing (1085 utterances)'
    """
    if label_set != DEFAULT_LABEL_SET or improvised_only:
        return []
    counts = Counter()
    for entry in entries.values():
        counts[entry["session"], entry["emotion"]] += 1
        counts[entry["session"], entry["gender"]] += 1
    differences = []
    for session, expected in COUNTS.items():
        found = [counts[session, name] for name in COUNTED]
        if not any(found):
            total = sum(expected[-2:])
            differences.append(f"{session} missing ({total} utterances)")
            continue
        parts = [
            f"{name} {have} instead of {want}"
            for name, have, want in zip(COUNTED, found, expected, strict=True)
            if have != want
        ]
        if parts:
            differences.append(f"{session} {', '.join(parts)}")
    if differences:
        words = "; ".join(differences)
        logger.warning("%s: differs from the complete corpus: %s", NAME, words)
    else:
        logger.info("%s: complete, all counts as published", NAME)
    return differences
