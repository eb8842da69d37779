"""Miniature copies of the corpora, for tests without the real ones.

The IEMOCAP tree has the release's exact format and the defects that copies of
it have in the wild; the others are a few clips under published file names.
"""

import numpy as np
import soundfile

# dialogue -> turns as (name's end, label, words)
IEMOCAP = {
    "Ses01F_impro01": [
        ("F000", "neu", "Excuse me."),
        ("M000", "sad", "[LAUGHTER] I don't know."),
        ("F001", "ang", "What's wrong?"),
        ("M001", "exc", "Great {news}!"),
        ("F002", "fru", "Again?"),
        ("M002", "xxx", "Well."),
        ("M003", "hap", "Yes."),
        ("F003", "sur", "Oh."),
    ],
    "Ses01F_script01_1": [
        ("F000", "neu", "I can't read your mind."),
        ("M000", "sad", "Nothing."),
    ],
    "Ses02F_script01_1": [
        ("F000", "hap", "I can't read your mind!"),
        ("M000", "ang", "nothing"),
    ],
    # the man wears the markers, the woman speaks
    "Ses03M_impro05a": [
        ("F000", "ang", "No."),
        ("M000", "neu", "Yes."),
    ],
    "Ses05M_script01_1b": [("F000", "sad", "Café?"), ("M000", "exc", "So.")],
}
CLIPS = {
    "emodb": [
        f"wav/{s}{t}{e}a"
        for s in ("03", "08", "16")
        for t in ("a01", "b10")
        for e in "WLEAFNT"
    ],
    "ravdess": [
        f"Actor_{a}/03-01-{e:02}-01-{t}-01-{a}"
        for a in ("01", "02", "24")
        for t in ("01", "02")
        for e in range(1, 9)
    ],
    "nemo": [
        f"{s}_{e}_{n}"
        for s in ("EB0", "KS0", "WR0")
        for n in (1, 51)
        for e in "anger fear happiness neutral sadness surprised".split()
    ],
}


def write_clip(path, number, seconds=0.1):
    """Write a short clip whose samples depend on its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    samples = 0.1 * rng.normal(size=int(16000 * seconds))
    soundfile.write(path, samples, 16000, "PCM_16")


def build(corpus, folder):
    """Write a corpus' miniature below a folder; the folder to prepare."""
    if corpus == "iemocap":
        return build_iemocap(folder)
    for number, name in enumerate(CLIPS.get(corpus, [])):
        write_clip(folder / f"{name}.wav", number)
    return folder


def evaluation_block(turn, label, number, newline="\n"):
    """Write one turn as EmoEvaluation has it."""
    start, end = 6.2901 + number, 8.2357 + number
    lines = [
        f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[2.5000, 3.0000, 1.5000]",
        "C-E2:\tNeutral;\t()",
        "C-E3:\tAnger; Frustration;\t()",
        "C-F1:\tNeutral; Anger;\t(curious\xe9)",
        "A-E3:\tval 3; act 2; dom  2;\t()",
        "A-F1:\tval 3; act 2; dom  1;\t()",
        "",
        "",
    ]
    return newline.join(lines)


def build_iemocap(folder):
    """Write the tree: defects in sessions 1 and 5, session 4 missing."""
    root = folder / "IEMOCAP_full_release"
    number = 0
    for dialogue, turns in IEMOCAP.items():
        session = root / f"Session{dialogue[4]}"
        newline = "\r\n" if dialogue.startswith("Ses05") else "\n"
        head = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
        evaluation = head + newline * 2
        said = f"{dialogue}_FXX0 [000.0000-000.5000]: Hm.{newline}"
        for end, label, words in turns:
            turn = f"{dialogue}_{end}"
            evaluation += evaluation_block(turn, label, number, newline)
            said += f"{turn} [006.2901-008.2357]: {words}{newline}"
            wav = session / "sentences" / "wav" / dialogue / f"{turn}.wav"
            number += 1
            write_clip(wav, number)
            wav.with_name(f"._{turn}.wav").write_bytes(b"\0\5\x16\7")
        for kind, text in (
            ("EmoEvaluation", evaluation),
            ("transcriptions", said),
        ):
            place = session / "dialog" / kind
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{dialogue}.txt"
            path.write_bytes(text.encode("latin-1"))
            (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
            (place / f"._{dialogue}.txt").write_bytes(b"\0\5\x16\7\xff")
        raters = session / "dialog" / "EmoEvaluation" / "Categorical"
        raters.mkdir(exist_ok=True)
        (raters / f"{dialogue}_e2_cat.txt").write_text("not read\n")
    return root


def damage_iemocap(root):
    """Add a duplicate, an unknown label, a broken line; take audio away."""
    name = "Ses01F_impro01"
    evaluation = root / f"Session1/dialog/EmoEvaluation/{name}.txt"
    with open(evaluation, "a", encoding="latin-1") as file:
        file.write(evaluation_block(f"{name}_F000", "neu", 20))
        file.write(evaluation_block(f"{name}_M009", "zzz", 21))
        file.write("[broken line\nC-E2:\tAnger;\t()\n\n")
    (root / f"Session1/sentences/wav/{name}/{name}_F001.wav").unlink()
    name = "Ses02F_script01_1"
    (root / f"Session2/dialog/transcriptions/{name}.txt").unlink()
    return root


def replace_bytes(path, *pairs):
    """Replace bytes that must be in a file."""
    data = path.read_bytes()
    for old, new in pairs:
        assert old in data, f"no {old} in {path}"
        data = data.replace(old, new)
    path.write_bytes(data)


def quirky_iemocap(folder):
    """Write a tree with everything that copies in the wild have; its root.

    The samples are those of a formula, so that hashes of them can be written
    down.
    """
    built = damage_iemocap(build_iemocap(folder))
    root = folder / "my corpora" / "IEMOCAP full release"
    root.parent.mkdir()
    built.rename(root)
    sessions = {k: root / f"Session{k}" for k in (1, 2, 3, 5)}
    evaluations = {
        path.stem: path
        for path in root.glob("Session?/dialog/EmoEvaluation/Ses*.txt")
    }
    # Ratings that are missing: all of them, one, none at all, cut off
    name = "Ses03M_impro05a"
    with open(evaluations[name], "a", encoding="latin-1") as file:
        for end, label, ratings in (
            ("F001", "ang", ""),
            ("F002", "sad", "\t[nan, nan, nan]"),
            ("F003", "neu", "\t[-1.0000, 3.0000, 0.0000]"),
            ("F004", "hap", "\t[2.5000, 3.0"),
            ("F005", "exc", "\t[, , ]   "),
            ("F006", "neu", "\t[2.5000, 3.0000, 1.5000]"),
            ("F007", "neu", "\t[2.5000, 3.0000, 1.5000]"),
            ("F008", "neu", "\t[2.5000, 3.0000, 1.5000]"),
        ):
            turn = f"{name}_{end}"
            file.write(f"[1.0000 - 2.0000]\t{turn}\t{label}{ratings}\n")
            file.write("C-E2:\tAnger;\t()\n\n")
            wav = sessions[3] / "sentences/wav" / name / f"{turn}.wav"
            write_clip(wav, 0)
    # The same turn again with another label, and no turn at all
    name = "Ses05M_script01_1b"
    with open(evaluations[name], "ab") as file:
        again = evaluation_block(f"{name}_F000", "ang", 30, "\r\n")
        other = evaluation_block("Ses09X_test_F000", "ang", 31, "\r\n")
        file.write((again + other).encode("latin-1"))
    # A file that was copied beside itself, in front of it in the alphabet
    original = evaluations["Ses01F_impro01"]
    copy = original.with_name("Ses01F_impro01 copy.txt")
    copy.write_bytes(original.read_bytes())
    # Old Macintosh line ends, a byte order mark, Windows' apostrophe
    replace_bytes(evaluations["Ses02F_script01_1"], (b"\n", b"\r"))
    data = evaluations["Ses01F_script01_1"].read_bytes()
    text = "\ufeff" + data.decode("latin-1")
    evaluations["Ses01F_script01_1"].write_bytes(text.encode("utf-8"))
    said = sessions[1] / "dialog/transcriptions/Ses01F_script01_1.txt"
    replace_bytes(said, (b"can't", b"can\x92t"))
    for number, wav in enumerate(sorted(root.rglob("Ses*.wav"))):
        samples = np.arange(1600) * (number + 3) % 2001 - 1000
        soundfile.write(wav, samples.astype(np.int16), 16000, "PCM_16")
    # Last, so that the numbers of the others do not change: damaged audio
    wavs = sessions[3] / "sentences/wav/Ses03M_impro05a"
    cut = wavs / "Ses03M_impro05a_F006.wav"
    cut.write_bytes(cut.read_bytes()[:-100])
    (wavs / "Ses03M_impro05a_F007.wav").write_bytes(b"")
    soundfile.write(wavs / "Ses03M_impro05a_F008.wav", np.zeros(0), 16000)
    return root
