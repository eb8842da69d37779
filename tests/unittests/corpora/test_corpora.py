"""One contract for all corpora, and what is particular to each."""

import csv
import logging
import os
import random
import re
from collections import Counter
from pathlib import Path

import miniature_corpora as miniature
import numpy as np
import pytest
import soundfile

from speechbrain_dslstm.corpora import (
    CORPORA,
    get_corpus,
    iemocap,
    manifest as schema,
    prepare,
    synthetic,
)

EMOTIONS = {
    "anger",
    "boredom",
    "calm",
    "disgust",
    "excitement",
    "fear",
    "frustration",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
}
SMALL = {"synthetic": {"speakers": 4, "sentences": 1}}
REAL = {
    "emodb": {
        "anger": 127,
        "boredom": 81,
        "disgust": 46,
        "fear": 69,
        "happiness": 71,
        "neutral": 79,
        "sadness": 62,
    },
    "ravdess": {
        "neutral": 96,
        "calm": 192,
        "happiness": 192,
        "sadness": 192,
        "anger": 192,
        "fear": 192,
        "disgust": 192,
        "surprise": 192,
    },
    "nemo": {"anger": 419, "happiness": 423, "neutral": 449, "sadness": 424},
}
SESSIONS = {"emodb": 5, "ravdess": 6, "nemo": 3}


@pytest.fixture(params=CORPORA)
def corpus(request):
    """Each corpus by name."""
    return request.param


@pytest.fixture
def tree(tmp_path):
    """IEMOCAP's miniature."""
    return miniature.build("iemocap", tmp_path)


@pytest.fixture(scope="module")
def folders(emodb_folder):
    """Folders of the real corpora that are here."""
    given = os.environ.get("DSLSTM_SPEECH_DATA", "")
    named = {name: Path(given, name) for name in REAL}
    named["emodb"] = emodb_folder
    return {name: folder for name, folder in named.items() if folder.is_dir()}


@pytest.fixture(scope="module")
def real(folders):
    """Entries of the real corpora, prepared once."""
    return {name: prepare(name, folder) for name, folder in folders.items()}


def test_contract_constants(corpus):
    module = get_corpus(corpus)
    for name in ("NAME", "LICENSE", "CITATION"):
        assert isinstance(getattr(module, name), str)
        assert getattr(module, name)
    assert isinstance(module.URL, str)
    assert module.DEFAULT_LABEL_SET in module.LABEL_SETS
    for mapping in module.LABEL_SETS.values():
        assert set(mapping.values()) <= EMOTIONS
        assert len(set(mapping.values())) >= 4


def test_contract_manifest(corpus, tmp_path, monkeypatch):
    folder = miniature.build(corpus, tmp_path)
    module = get_corpus(corpus)
    options = SMALL.get(corpus, {})
    for label_set, mapping in module.LABEL_SETS.items():
        entries, labels = prepare(corpus, folder, label_set, **options)
        assert labels == list(dict.fromkeys(mapping.values()))
        assert {e["emotion"] for e in entries.values()} == set(labels)
        assert list(entries) == sorted(entries)
        schema.check_entries(entries)
        for entry in entries.values():
            wav = Path(entry["wav"].format(data_root=folder))
            assert wav.is_file()
            assert not re.search(r"\\|//|\.\.", entry["wav"])
    default = prepare(corpus, folder, **options)
    assert default == prepare(
        corpus, folder, module.DEFAULT_LABEL_SET, **options
    )
    genders = {(e["speaker"], e["gender"]) for e in default[0].values()}
    assert len(genders) == len({s for s, _ in genders})
    sessions = {(e["speaker"], e["session"]) for e in default[0].values()}
    assert len(sessions) == len(genders)
    # whatever order the file system lists names in
    listed = os.scandir

    def shuffled(path):
        names = list(listed(path))
        random.shuffle(names)
        return _Scan(names)

    monkeypatch.setattr(os, "scandir", shuffled)
    assert prepare(corpus, folder, **options) == default


class _Scan(list):
    """What os.scandir returns: an iterator that closes."""

    def __iter__(self):
        return self

    def __next__(self):
        if not self:
            raise StopIteration
        return self.pop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    close = __exit__


def test_contract_errors(corpus, tmp_path):
    with pytest.raises(ValueError, match="unknown label set '9class'"):
        prepare(corpus, tmp_path, "9class")
    if corpus == "synthetic":
        return
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"no folder {missing}; exp"):
        prepare(corpus, missing)
    with pytest.raises(ValueError, match=f"{tmp_path} has no"):
        prepare(corpus, tmp_path)


def test_unknown_corpus():
    with pytest.raises(
        ValueError, match="'iemo'; expected one of iemocap, emodb"
    ):
        get_corpus("iemo")


@pytest.mark.parametrize("name", REAL)
def test_real_counts(name, real):
    if name not in real:
        pytest.skip(f"{name} is not here")
    entries, labels = real[name]
    counts = Counter(e["emotion"] for e in entries.values())
    assert dict(counts) == REAL[name]
    assert labels == list(REAL[name])
    sessions = {e["session"] for e in entries.values()}
    assert sessions == {str(n + 1) for n in range(SESSIONS[name])}


@pytest.mark.parametrize("name", REAL)
def test_real_labels_are_those_of_the_table(name, real, folders):
    if name not in real:
        pytest.skip(f"{name} is not here")
    entries = real[name][0]
    table = folders[name] / "manifest.tsv"
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len(entries)
    for row in rows:
        entry = entries[Path(row["file"]).stem]
        for key in ("speaker", "emotion", "text_id"):
            assert entry[key] == row[key]
        assert entry["gender"] == row["sex"]
        assert abs(entry["duration"] - float(row["seconds"])) < 0.001
        if name == "ravdess":
            assert entry["text"] == row["text"]


def test_real_identical_recordings(real):
    found = {}
    for name, (entries, _) in real.items():
        seen = {}
        for key, entry in entries.items():
            seen.setdefault(entry["audio_hash"], []).append(key)
        found[name] = [keys for keys in seen.values() if len(keys) > 1]
    assert found == {
        name: [["03-01-03-01-02-01-07", "03-01-03-01-02-02-07"]]
        if name == "ravdess"
        else []
        for name in real
    }


def test_same_id_as_wav_and_flac(tmp_path, caplog):
    miniature.build("emodb", tmp_path)
    wav = tmp_path / "wav" / "03a01Wa.wav"
    samples, rate = soundfile.read(wav)
    soundfile.write(wav.with_suffix(".FLAC"), samples, rate, format="FLAC")
    with caplog.at_level(logging.WARNING):
        entries, _ = prepare("emodb", tmp_path)
    assert entries["03a01Wa"]["wav"].endswith("03a01Wa.FLAC")
    assert "1 of 43 clips named twice" in caplog.text


def test_links_are_followed_once(tmp_path):
    miniature.build("emodb", tmp_path / "real")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "wav").symlink_to(tmp_path / "real" / "wav")
    (tmp_path / "link" / "loop").symlink_to(tmp_path / "link")
    assert len(prepare("emodb", tmp_path / "link")[0]) == 42


def test_other_files_of_ravdess_are_passed_over(tmp_path, caplog):
    miniature.build("ravdess", tmp_path)
    for name in ("03-02-01-01-01-01-01", "01-01-01-01-01-01-01", "x"):
        miniature.write_clip(tmp_path / f"{name}.wav", 0)
    (tmp_path / "._03-01-01-01-01-01-05.wav").write_bytes(b"\0")
    with caplog.at_level(logging.INFO):
        assert len(prepare("ravdess", tmp_path)[0]) == 48
    assert "3 audio files with other names skipped" in caplog.text


def test_unknown_code_is_counted(tmp_path, caplog):
    miniature.build("ravdess", tmp_path)
    miniature.write_clip(tmp_path / "03-01-09-01-01-01-01.wav", 0)
    with caplog.at_level(logging.WARNING):
        prepare("ravdess", tmp_path, "4class")
    assert "1 of 25 clips with a label outside" in caplog.text


def test_iemocap_from_root_or_parent(tree):
    entries, _ = prepare("iemocap", tree)
    above, _ = prepare("iemocap", tree.parent)
    key = "Ses03M_impro05a_F000"
    assert list(entries) == list(above)
    wav = "Session3/sentences/wav/Ses03M_impro05a/Ses03M_impro05a_F000.wav"
    assert entries[key]["wav"] == "{data_root}/" + wav
    assert above[key]["wav"] == "{data_root}/IEMOCAP_full_release/" + wav


def test_iemocap_entry(tree):
    entries, labels = prepare("iemocap", tree)
    assert labels == ["anger", "happiness", "neutral", "sadness"]
    assert len(entries) == 13
    # the speaker is who speaks, not who wears the markers
    entry = entries["Ses03M_impro05a_F000"]
    assert (entry["speaker"], entry["gender"]) == ("Ses03F", "F")
    assert entry["session"] == "Ses03"
    assert entry["dialogue"] == "Ses03M_impro05a"
    affect = [entry[k] for k in ("valence", "arousal", "dominance")]
    assert affect == [2.5, 3.0, 1.5]
    assert entry["votes"] == {
        "E2": ["Neutral"],
        "E3": ["Anger", "Frustration"],
        "F1": ["Neutral", "Anger"],
    }
    assert entries["Ses05M_script01_1b_F000"]["text"] == "Café?"
    # a scripted line is one sentence in all sessions
    line = "i cant read your mind"  # codespell:ignore cant
    assert entries["Ses01F_script01_1_F000"]["text_id"] == line
    assert entries["Ses02F_script01_1_F000"]["text_id"] == line
    assert entries["Ses01F_impro01_M000"]["text"] == "[LAUGHTER] I don't know."


@pytest.mark.parametrize(
    ("label_set", "expected"),
    [
        ("4class", {"anger": 3, "happiness": 4, "neutral": 3, "sadness": 3}),
        (
            "4class-no-exc",
            {"anger": 3, "happiness": 2, "neutral": 3, "sadness": 3},
        ),
        (
            "6class",
            {
                "anger": 3,
                "excitement": 2,
                "frustration": 1,
                "happiness": 2,
                "neutral": 3,
                "sadness": 3,
            },
        ),
    ],
)
def test_iemocap_label_sets(tree, label_set, expected):
    entries, labels = prepare("iemocap", tree, label_set)
    counts = Counter(e["emotion"] for e in entries.values())
    assert {label: counts[label] for label in labels} == expected


def test_iemocap_improvised_only(tree):
    entries, _ = prepare("iemocap", tree, improvised_only=True)
    dialogues = {e["dialogue"] for e in entries.values()}
    assert dialogues == {"Ses01F_impro01", "Ses03M_impro05a"}


def test_iemocap_defects(tree, caplog):
    miniature.damage_iemocap(tree)
    with caplog.at_level(logging.WARNING):
        entries, _ = prepare("iemocap", tree)
    assert len(entries) == 12
    assert "Ses01F_impro01_F001" not in entries
    key = "Ses02F_script01_1_F000"
    assert (entries[key]["text"], entries[key]["text_id"]) == ("", key)
    for message in (
        "1 malformed turns skipped, such as Session1/dialog/EmoEvaluation/",
        "3 turns without a transcription kept, such as Ses01F_impro01_M009",
        "named twice (the first is kept), skipped: Ses01F_impro01_F000",
        "Ses01F_impro01_M009.wav (zzz)",
        "clips missing, skipped: Session1/sentences/wav/Ses01F_impro01/",
    ):
        assert message in caplog.text
    # votes below a broken line belong to no turn
    assert entries["Ses01F_impro01_M003"]["votes"]["E2"] == ["Neutral"]


def test_iemocap_counts_in_one_line(tree, caplog):
    with caplog.at_level(logging.WARNING):
        prepare("iemocap", tree)
    [line] = [m for m in caplog.messages if "complete corpus" in m]
    assert "Ses04 missing (1031 utterances)" in line
    assert "Ses02 anger 1 instead of 137, happiness 1 instead of 327" in line
    caplog.clear()
    prepare("iemocap", tree, "6class")
    assert not caplog.messages


def test_iemocap_table_adds_up(caplog):
    total = np.array(list(iemocap.COUNTS.values())).sum(axis=0)
    assert list(total[:4]) == [1103, 1636, 1708, 1084]
    assert total[:4].sum() == total[4:].sum() == 5531
    complete = {}
    for session, numbers in iemocap.COUNTS.items():
        emotions = np.repeat(iemocap.COUNTED[:4], numbers[:4])
        genders = np.repeat(["F", "M"], numbers[4:])
        for n, (emotion, gender) in enumerate(
            zip(emotions, genders, strict=True)
        ):
            complete[f"{session}{n}"] = {
                "session": session,
                "emotion": emotion,
                "gender": gender,
            }
    assert iemocap.compare_counts(complete) == []


def digest(folder):
    """Bytes of every file of a folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_synthetic_is_the_same_again(tmp_path):
    size = {"speakers": 2, "sentences": 2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert synthetic.generate(tmp_path / name, seed, **size)
    one, two, other = (digest(tmp_path / n) for n in "abc")
    assert one == two
    assert set(one) == set(other)
    assert all(one[name] != other[name] for name in one)
    # a speaker says the same whatever the size of the corpus
    synthetic.generate(tmp_path / "d", 0, speakers=1, sentences=1)
    clip = "spk01_sadness_s1.wav"
    assert digest(tmp_path / "d")[clip] == one[clip]


def test_synthetic_is_redone_when_cut_short_or_different(tmp_path):
    size = {"speakers": 1, "sentences": 1}
    assert synthetic.generate(tmp_path, **size)
    assert not synthetic.generate(tmp_path, **size)
    before = digest(tmp_path)
    (tmp_path / "spk01_anger_s1.wav").unlink()
    assert synthetic.generate(tmp_path, **size)
    (tmp_path / "labels.tsv").unlink()
    assert synthetic.generate(tmp_path, **size)
    assert digest(tmp_path) == before
    assert synthetic.generate(tmp_path, seed=1, **size)
    assert digest(tmp_path) != before


def test_synthetic_spares_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files, such as thesis.txt"):
        prepare("synthetic", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(ValueError, match="speakers is 11, expected 1 to 10"):
        synthetic.generate(tmp_path / "a", speakers=11)


def test_synthetic_default_size(tmp_path):
    entries, labels = prepare("synthetic", tmp_path / "new")
    assert len(entries) == 240
    for key, count in (
        ("emotion", 4),
        ("speaker", 10),
        ("session", 5),
        ("text_id", 6),
        ("audio_hash", 240),
    ):
        assert len({e[key] for e in entries.values()}) == count
    lengths = [e["duration"] for e in entries.values()]
    assert 0.7 < min(lengths) and max(lengths) < 2.2
    info = soundfile.info(tmp_path / "new" / "spk01_anger_s1.wav")
    assert (info.samplerate, info.channels) == (16000, 1)
    assert info.subtype == "PCM_16"
    level = {label: [] for label in labels}
    for entry in entries.values():
        samples, _ = soundfile.read(
            entry["wav"].format(data_root=tmp_path / "new")
        )
        assert np.abs(samples).max() < 1
        level[entry["emotion"]].append(np.log(samples.std()))
    # loudness moves with emotion, but does not give it away
    assert np.mean(level["anger"]) > np.mean(level["sadness"])
    assert min(level["anger"]) < max(level["sadness"])
