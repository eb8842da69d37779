"""Own tables and several corpora: labels, names, folders, protocols."""

import re

import miniature_corpora as miniature
import pytest

from speechbrain_dslstm.corpora import CORPORA, Source, manifest as schema
from speechbrain_dslstm.corpora.label_map import (
    find_similar,
    read_classes,
    read_label_map,
)
from speechbrain_dslstm.splits import check_leaks, count_folds, make_split
from speechbrain_dslstm.splits.protocols import PROTOCOLS
from speechbrain_dslstm.utils.names import fits_on_line

EMOTIONS = ("anger", "happiness", "neutral")
COLUMNS = "file,emotion,speaker,gender,session,text_id,split"


def write_table(folder, name="own", speakers=6, texts=3, columns=COLUMNS):
    """Write clips and their table; the table's path."""
    names, lines = columns.split(","), [columns]
    for s in range(speakers):
        for t in range(texts):
            for emotion in EMOTIONS:
                file = f"{name}_s{s}_{t}_{emotion}.wav"
                number = hash((name, s, t, emotion)) % 2**32
                miniature.write_clip(folder / file, number, 0.02)
                facts = {
                    "file": file,
                    "emotion": emotion,
                    "speaker": f"s{s}",
                    "gender": "FM"[s % 2],
                    "session": f"day{s // 2}",
                    "text_id": f"t{t}",
                    "split": ("test", "train", "train")[s % 3],
                }
                lines.append(",".join(facts[key] for key in names))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with miniatures of EMO-DB and RAVDESS, and two tables."""
    folder = tmp_path_factory.mktemp("several")
    for corpus in ("emodb", "ravdess"):
        miniature.build(corpus, folder / corpus)
    for name in ("one", "two"):
        write_table(folder, name)
    return folder


def source(place, corpus="table", table="one.csv", **settings):
    """The source of some settings, tables in the folder."""
    if table is not None:
        table = ",".join(str(place / one) for one in table.split(","))
    given = {"data_folder": str(place), **settings}
    return Source({"corpus": corpus, "table": table, **given})


@pytest.mark.parametrize(
    ("corpus", "table", "folders"),
    [
        ("table", "one.csv,two.csv", None),
        ("emodb+ravdess", None, "emodb=emodb,ravdess=ravdess"),
        ("emodb+table", "one.csv", "emodb=emodb"),
    ],
)
def test_relative_paths_are_those_of_the_caller(
    place, monkeypatch, corpus, table, folders
):
    monkeypatch.chdir(place)
    given = {"corpus": corpus, "table": table, "data_folder": folders}
    found = Source(given)
    for entry in found.prepare().values():
        wav = entry["wav"].format(data_root=found.data_root)
        assert (place / wav).is_file() and wav.startswith("./")


def test_the_contract_of_a_manifest(place):
    """What the contract demands of a corpus' manifest holds for all mixtures."""
    for corpus, table in (
        ("table", "one.csv"),
        ("table", "one.csv,two.csv"),
        ("emodb+ravdess", None),
        ("emodb+ravdess+table", "one.csv,two.csv"),
    ):
        found = source(place, corpus, table)
        entries = found.prepare()
        schema.check_entries(entries)
        assert list(entries) == sorted(entries)
        assert {e["emotion"] for e in entries.values()} == set(found.labels)
        for entry in entries.values():
            wav = entry["wav"].format(data_root=found.data_root)
            assert (place / wav).is_file()
            assert not re.search(r"\\|//|\.\.", entry["wav"])
            assert entry["wav"].startswith("{data_root}/")
        for key in ("gender", "session", "corpus"):
            pairs = {(e["speaker"], e[key]) for e in entries.values()}
            assert len(pairs) == len({speaker for speaker, _ in pairs})
        assert found.prepare() == source(place, corpus, table).prepare()


def test_several_corpora_are_never_confused(place):
    found = source(place, "emodb+ravdess+table", "one.csv,two.csv")
    entries = found.prepare()
    assert found.parts == ["emodb", "ravdess", "one", "two"]
    assert {e["corpus"] for e in entries.values()} == set(found.parts)
    for key, entry in entries.items():
        start = f"{entry['corpus']}/"
        for value in (
            key,
            entry["speaker"],
            entry["session"],
            entry["text_id"],
        ):
            assert value.startswith(start)
    # Classes that all four have, in the order of the first
    assert found.labels == ["anger", "happiness", "neutral"]
    speakers = {e["speaker"] for e in entries.values()}
    assert {"one/s0", "two/s0"} <= speakers and len(speakers) == 18


def test_label_left_out_is_listed(place):
    left_out = []
    entries = source(place, "emodb+table").prepare(left_out)
    reasons = {one["reason"] for one in left_out}
    assert "label 'boredom' is left out" in reasons
    assert len(left_out) == 42 - 18 and len(entries) == 54 + 18
    found = source(
        place, label_map="happiness=joy,neutral=", classes="joy,anger"
    )
    assert found.labels == ["joy", "anger"]
    assert len(found.prepare()) == 36


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "table", "table": None}, "requires the path of one"),
        ({"corpus": "emodb"}, "set corpus to table"),
        ({"corpus": "emodb+emodb", "table": None}, "has emodb twice"),
        ({"corpus": "emo"}, "unknown corpus 'emo'; expected .*synthetic, table"),
        ({"label_set": "4class"}, "select labels with classes and label_map"),
        ({"columns": "emotion=label"}, "expected a mapping such as"),
        ({"classes": "anger"}, "classes: expected at least 2"),
        ({"classes": "anger,anger"}, "classes: 'anger' is given twice"),
        ({"classes": ["anger", True]}, "classes: True is no text: quote"),
        ({"classes": ["anger", None]}, "classes: None is no text: quote"),
        ({"classes": ["anger", "a\nb"]}, r"'a\\nb' has a character"),
        ({"classes": "anger,happiness,neutral,envy"}, "no clip has the label 'envy'"),
        (
            {"classes": "anger,neutral"},
            r"one.csv:3: label 'happiness' of 18 clips is not among the classes "
            r"anger, neutral: .*happiness=CLASS.*happiness=\)",
        ),
        ({"label_map": "anger"}, "'anger' is no 'label=class'"),
        ({"label_map": "a=b,a=c"}, "'a' is mapped twice"),
        ({"label_map": "no.yaml"}, "no label map no.yaml"),
        ({"label_map": "anger=,neutral="}, "at least 2 classes"),
        (
            {"corpus": "emodb+table", "corpus_options": {"x": 1}},
            "corpus_options are for a single corpus",
        ),
        ({"data_folder": {"three": "x"}}, "data_folder: unknown corpus 'three'"),
        ({"table": "one.csv,one.csv"}, "say the same; give each table once"),
        ({"corpus": "emodb", "table": None, "data_folder": None}, "emodb requires its folder"),
    ],
)  # fmt: skip
def test_settings_that_contradict(place, settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        found = source(place, **settings)
        assert found.labels
        found.prepare()


def test_label_maps(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("ang: anger\n1: yes\n'no': null\nnull: 'a: b'\nx:\n")
    assert read_label_map(path) == {
        "ang": "anger", "1": "yes", "no": "null", "null": "a: b", "x": "",
    }  # fmt: skip
    path.write_text("- a")
    with pytest.raises(ValueError, match="expected lines such as"):
        read_label_map(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no YAML"):
        read_label_map(path)
    assert read_label_map({1: 2, "x": None}) == {"1": "2", "x": ""}
    assert read_classes([1, " b "]) == ["1", "b"]
    assert not fits_on_line("a\u2028b") and not fits_on_line("\u202eevil")


def test_a_table_of_the_name_of_a_corpus(place, tmp_path):
    """Two tables of one stem, or a table named emodb, are told apart."""
    paths = [
        write_table(tmp_path / n, "one", s) for n, s in (("x", 4), ("y", 5))
    ]
    tables = [str(path) for path in paths]
    found = Source({"corpus": "table", "table": tables})
    names = found.parts
    assert all(re.fullmatch("one-[0-9a-f]{8}", name) for name in names)
    assert len(found.prepare()) == 81
    table = write_table(tmp_path, "emodb")
    found = Source({"corpus": "emodb+table", "table": str(table),
                    "data_folder": f"emodb={place / 'emodb'}"})  # fmt: skip
    entries = found.prepare()
    assert len({e["corpus"] for e in entries.values()}) == 2
    assert all(e["wav"].startswith("/") for e in entries.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol(place, protocol):
    tables = "one.csv,two.csv" if protocol == "corpus" else "one.csv"
    found = source(place, table=tables)
    found.check_protocol(protocol)
    entries = found.prepare()
    for fold in range(count_folds(entries, protocol)):
        split = make_split(entries, protocol, fold)
        leaks = check_leaks(split, entries)
        corpora = {entries[key]["corpus"] for key in split.test}
        if protocol == "corpus":
            assert len(corpora) == 1
            assert leaks["train"]["corpus"]["count"] == 0
        if protocol == "split":
            assert all(entries[key]["split"] == "test" for key in split.test)
            assert leaks["valid"]["speaker"]["count"] == 0


@pytest.mark.parametrize(
    ("protocol", "columns", "message"),
    [
        ("speaker", "file,emotion", r"own.csv:2: no speaker \(in 54 of 54 rows\)"
         ", which protocol speaker needs: add a column speaker, or use --proto"),
        ("session", "file,emotion,session", "own.csv:2: no speaker"),
        ("all", "file,emotion", "no speaker"),
        ("text", "file,emotion,speaker", "own.csv:2: no text_id .*column text_id"),
        ("split", "file,emotion,speaker", "own.csv:2: no split .* train, valid or"),
        ("corpus", "file,emotion,speaker", "there is only own: give several"),
    ],
)  # fmt: skip
def test_what_a_protocol_needs(tmp_path, protocol, columns, message):
    table = write_table(tmp_path, "own", columns=columns)
    found = Source({"corpus": "table", "table": str(table)})
    with pytest.raises(ValueError, match=message):
        found.check_protocol(protocol)
    # The splits refuse it as well, whoever made the manifest
    entries = found.prepare()
    with pytest.raises(ValueError, match="is empty|needs at least 2 corpora"):
        make_split(entries, protocol, 0)
    found.check_protocol("random")
    split = make_split(entries, "random", 0)
    assert check_leaks(split, entries)


def test_split_without_speakers(tmp_path):
    table = write_table(tmp_path, "own", columns="file,emotion,split")
    found = Source({"corpus": "table", "table": str(table)})
    found.check_protocol("split")
    entries = found.prepare()
    split = make_split(entries, "split", 0)
    assert "clips" in split.description
    assert {entries[k]["split"] for k in split.valid} == {"train"}
    for entry in entries.values():
        entry["split"] = "train"
    with pytest.raises(ValueError, match="no clip has test in the column"):
        make_split(entries, "split", 0)


def test_names_that_differ_little(tmp_path, caplog):
    """Typing errors in labels and speakers are told, and nothing is changed."""
    for k in range(6):
        miniature.write_clip(tmp_path / f"{k}.wav", k, 0.02)
    labels, speakers = ("anger", "Anger", "fear"), ("s01", "s1", "s2")
    lines = [f"{k}.wav,{labels[k % 3]},{speakers[k // 2]}" for k in range(6)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["file,emotion,speaker", *lines]))
    found = Source({"corpus": "table", "table": str(path)})
    assert len(found.prepare()) == 6 and found.labels == sorted(labels)
    assert "'Anger' and 'anger' are two classes" in caplog.text
    assert "'s01' and 's1' are two speakers" in caplog.text
    caplog.clear()
    settings = {"label_map": "Anger=anger,feer=fear"}
    Source({"corpus": "table", "table": str(path), **settings}).prepare()
    assert "two classes" not in caplog.text
    assert "no clip has the label 'feer'" in caplog.text
    assert find_similar(["10", "1", "100", "x 1", "x 2"]) == []
    assert find_similar(["1", "1.0"]) == [("1", "1.0")]


def test_a_speaker_of_two_sessions(tmp_path):
    rows = "file,emotion,speaker,session\na,b,s,1\nc,d,s,2"
    (tmp_path / "t.csv").write_text(rows)
    found = Source({"corpus": "table", "table": str(tmp_path / "t.csv")})
    with pytest.raises(ValueError, match="t.csv:3: speaker s is in session 2"):
        found.check_protocol("session")
    found.check_protocol("speaker")
    with pytest.raises(FileNotFoundError, match="t.csv:2: no file .*/a "):
        found.check_files()


def test_a_table_beside_its_files(place, tmp_path):
    """Among several corpora, data_folder need not hold the table's files."""
    (tmp_path / "emodb").symlink_to(place / "emodb")
    found = source(place, "emodb+table", data_folder=str(tmp_path))
    found.check_files()


def test_files_are_checked_without_audio(place):
    source(place, "emodb+ravdess+table").check_files()
    missing = source(place, "emodb+nemo", None)
    with pytest.raises(FileNotFoundError, match="corpus nemo: no folder"):
        missing.check_files()


def test_many_tables_have_a_short_name(tmp_path):
    paths = [tmp_path / f"recordings of the year {k}.csv" for k in range(9)]
    for path in paths:
        path.write_text(f"file,emotion\na,{path.stem}\nb,c")
    found = Source({"corpus": "table", "table": list(map(str, paths))})
    assert re.fullmatch("9_corpora-[0-9a-f]{8}", found.name)


def test_one_speaker(tmp_path):
    table = write_table(tmp_path, "own", speakers=1, texts=5)
    entries = Source({"corpus": "table", "table": str(table)}).prepare()
    with pytest.raises(ValueError, match="needs at least 2 speakers"):
        make_split(entries, "speaker", 0)
    assert make_split(entries, "random", 0)


def test_builtin_corpora_are_as_before(place):
    """Nothing is added to the manifest of a single corpus."""
    found = source(place, "emodb", None, data_folder=str(place / "emodb"))
    assert found.name == "emodb" and found.data_root == str(place / "emodb")
    entries = found.prepare()
    assert "03a01Wa" in entries
    assert not {"corpus", "split"} & set().union(*entries.values())
    assert source(place, "emodb", None, label_map="boredom=").name != "emodb"
    assert set(CORPORA) == {"iemocap", "emodb", "ravdess", "nemo", "synthetic"}


def test_fixed_sentences(place):
    """Sentences that all speakers say make the score of a text model a leak."""
    assert source(place).fixed_sentences
    assert not source(place, "emodb", None).fixed_sentences
