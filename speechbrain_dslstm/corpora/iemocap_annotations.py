"""Read the text files of IEMOCAP, with the faults that existing copies have.

Files may have any line ends, an older encoding than UTF-8, missing ratings or
broken lines. Each turn has the number of its line, for error reports.
"""

import math
import re
from pathlib import Path

__all__ = ["is_dialogue", "read_evaluation", "read_transcription"]

NUMBER = r"-?\d+(?:\.\d+)?"
TURN = re.compile(
    rf"\[{NUMBER} - {NUMBER}\]\s+(\S+)\s+(\w+)(?:\s+\[([^\]]*)\])?(?:\s.*)?"
)
RATINGS = ("valence", "arousal", "dominance")
VOTE = re.compile(r"C-(\w+):\s*([^(]*)")
SAID = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)")


def is_dialogue(name: str) -> bool:
    """Whether a file's base name is that of a dialogue, not of a stray copy.

    >>> is_dialogue("Ses05M_script01_1b"), is_dialogue("Ses01F_impro01 copy")
    (True, False)
    """
    return bool(re.fullmatch(r"Ses0[1-5][FM]_(?:impro|script)\w+", name))


def read_evaluation(path: Path) -> list[dict]:
    """Read the turns of one dialogue from a file of EmoEvaluation.

    Each turn has the "number" of its line, "line", "id" (empty for a malformed
    line), "code" of the label, "votes" (annotator -> list of str), "ratings"
    (name -> float) and "unrated" (names without a rating).

    >>> path = getfixture("tmp_path") / "Ses01F_impro01.txt"
    >>> _ = path.write_text(
    ...     "[0.5 - 1.5]\\tSes01F_impro01_F000\\tneu\\t[2, nan]"
    ... )
    >>> [turn] = read_evaluation(path)
    >>> turn["id"], turn["ratings"], turn["unrated"]
    ('Ses01F_impro01_F000', {'valence': 2.0}, ['arousal', 'dominance'])
    """
    turns, votes = [], None
    for number, line in enumerate(_read_lines(path), 1):
        if line.startswith("["):
            match = TURN.fullmatch(line)
            name, code, given = match.groups() if match else ("", "", "")
            ratings = _ratings(given)
            votes = {}
            turns.append(
                {
                    "number": number,
                    "line": line,
                    "id": name,
                    "code": code,
                    "votes": votes,
                    "ratings": ratings,
                    "unrated": [r for r in RATINGS if r not in ratings],
                }
            )
        elif votes is not None and (match := VOTE.match(line)):
            cast = [v.strip() for v in match[2].split(";") if v.strip()]
            votes.setdefault(match[1], []).extend(cast)
    return turns


def _ratings(text: str | None) -> dict[str, float]:
    """Parse the ratings of valence, arousal and dominance that are given."""
    found = {}
    for name, value in zip(RATINGS, (text or "").split(","), strict=False):
        try:
            value = float(value)
        except ValueError:
            continue
        # The scale begins with 1; a missing rating is written as 0 or -1
        if math.isfinite(value) and value > 0:
            found[name] = value
    return found


def read_transcription(path: Path) -> dict[str, str]:
    """Read the words of each turn of a dialogue; empty for a missing file.

    >>> path = getfixture("tmp_path") / "Ses01F_impro01.txt"
    >>> _ = path.write_text("Ses01F_impro01_F000 [006.29-008.23]: Excuse me.")
    >>> read_transcription(path)
    {'Ses01F_impro01_F000': 'Excuse me.'}
    """
    if not path.is_file():
        return {}
    matches = (SAID.match(line) for line in _read_lines(path))
    return {m[1]: m[2].strip() for m in matches if m}


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file with any line ends and encoding."""
    data = path.read_bytes()
    # cp1252, of Windows, leaves some bytes undefined, latin-1 none
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    return re.split(r"\r\n|\r|\n", text)
