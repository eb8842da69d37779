"""Tables of recordings: all kinds that people make are read, or refused by line."""

import json
import time
from pathlib import Path

import miniature_corpora as miniature
import numpy as np
import pytest
import soundfile

from speechbrain_dslstm.corpora import Source, manifest as schema, prepare
from speechbrain_dslstm.corpora.clips import load_clip, read_audio_facts
from speechbrain_dslstm.corpora.table import read_table

ROWS = """\
file,emotion,speaker
wav/a.wav,anger,s1
wav/b.wav,sadness,s1
wav/c.wav,anger,s2
wav/d.wav,sadness,s2
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with four short clips, and a fifth of one second."""
    folder = tmp_path_factory.mktemp("own")
    for number, name in enumerate("abcd"):
        miniature.write_clip(folder / "wav" / f"{name}.wav", number)
    miniature.write_clip(folder / "wav" / "long.wav", 9, seconds=1.0)
    return folder


@pytest.fixture
def place(tmp_path, clips):
    """A folder for tables, beside a link to the clips."""
    (tmp_path / "wav").symlink_to(clips / "wav")
    return tmp_path


def read(path, **settings):
    """Entries and labels of a table."""
    return prepare("table", None, table=str(path), **settings)


def facts(entries):
    """Name, emotion and speaker of each clip."""
    return {
        (Path(e["wav"]).name, e["emotion"], e["speaker"])
        for e in entries.values()
    }


EXPECTED = {
    ("a.wav", "anger", "s1"),
    ("b.wav", "sadness", "s1"),
    ("c.wav", "anger", "s2"),
    ("d.wav", "sadness", "s2"),
}
LINES = ROWS.splitlines()


def json_lines(rows):
    """The same rows as JSON Lines."""
    names, *others = (line.split(",") for line in rows)
    return "".join(
        json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in others
    )


GOOD = {
    "csv": ("t.csv", ROWS),
    "byte order mark": ("t.csv", "\ufeff" + ROWS),
    "semicolons": ("t.csv", ROWS.replace(",", ";")),
    "tabs": ("t.tsv", ROWS.replace(",", "\t")),
    "tabs in a csv": ("t.csv", ROWS.replace(",", "\t")),
    "bars": ("t.txt", ROWS.replace(",", "|")),
    "CRLF": ("t.csv", ROWS.replace("\n", "\r\n")),
    "no last line end": ("t.csv", ROWS.rstrip()),
    "quotes": ("t.csv", '"' + '"\n"'.join(
        line.replace(",", '","') for line in LINES) + '"\n'),
    "spaces": ("t.csv", ROWS.replace(",", " , ")),
    "empty lines": ("t.csv", ROWS.replace("\n", "\n\n") + ",,\n\n"),
    "other case": ("t.csv", ROWS.replace("file,emotion", "File,EMOTION")),
    "Windows paths": ("t.csv", ROWS.replace("wav/", "wav\\")),
    "dots in paths": ("t.csv", ROWS.replace("wav/", "./wav/../wav//")),
    "more columns": ("t.csv", "\n".join(
        f"{k},x y,{line}" if k else f"no,,{line}"
        for k, line in enumerate(LINES))),
    "json lines": ("t.jsonl", json_lines(LINES)),
    "other values in json": ("t.jsonl", json_lines(LINES).replace("}", ', "more": {"a": [1]}}')),
    "two byte order marks": ("t.csv", "\ufeff\ufeff" + ROWS),
    "an empty line first": ("t.csv", "\n;;\n" + ROWS.replace(",", ";")),
    "line ends of three systems": ("t.csv", "\r".join(LINES[:2]) + "\r\n" + "\n".join(LINES[2:])),
    "json lines with CRLF": ("t.ndjson", "\ufeff" + json_lines(LINES).replace("\n", "\r\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(name, place):
    file, text = GOOD[name]
    (place / file).write_bytes(text.encode("utf-8"))
    entries, labels = read(place / file)
    assert facts(entries) == EXPECTED
    assert labels == ["anger", "sadness"]
    schema.check_entries(entries)
    assert sorted(entries) == [
        "wav/a.wav",
        "wav/b.wav",
        "wav/c.wav",
        "wav/d.wav",
    ]
    for entry in entries.values():
        assert Path(entry["wav"].format(data_root=place)).is_file()


def edit(line, new):
    """The rows with another line; 1 is the header."""
    return "\n".join([*LINES[: line - 1], new, *LINES[line:]]) + "\n"


# name -> file, content, and what the error says
BAD = {
    "no file": (None, "", "no table .*t.csv"),
    "empty": ("t.csv", "", "t.csv: the table is empty"),
    "only spaces": ("t.csv", "\n \n", "t.csv: the table is empty"),
    "only a header": ("t.csv", LINES[0], "t.csv: the table has no row"),
    "no emotion": ("t.csv", ROWS.replace("emotion", "label"),
                   "t.csv: no column 'emotion'; the columns are: file, label, speaker.*--columns='{emotion: NAME}'"),
    "no header": ("t.csv", "\n".join(LINES[1:]), "t.csv: no column 'file'"),
    "two columns": ("t.csv", edit(1, "file,emotion,Emotion"), "t.csv:1: two columns are named 'Emotion'"),
    "ragged": ("t.csv", edit(3, "wav/b.wav,sadness"), "t.csv:3: 2 cells, but the header has 3"),
    "too long": ("t.csv", edit(4, "wav/c.wav,anger,s2,x"), "t.csv:4: 4 cells"),
    "no label": ("t.csv", edit(3, "wav/b.wav,,s1"), "t.csv:3: emotion is empty"),
    "no name": ("t.csv", edit(5, ",anger,s1"), "t.csv:5: file is empty"),
    "twice": ("t.csv", ROWS + "./wav/a.wav,anger,s1\n", "t.csv:6: wav/a.wav is also in line 2; remove"),
    "two labels": ("t.csv", ROWS + "wav/a.wav,sadness,s1\n", "t.csv:6: wav/a.wav is also in line 2, as 'sadness' and as 'anger'"),
    "missing": ("t.csv", edit(3, "wav/x.wav,anger,s1"), r"t.csv:3: no file .*wav/x.wav \(1 of the 4 files"),
    "drive": ("t.csv", edit(3, "C:\\wav\\b.wav,anger,s1"), "t.csv:3: C:.* under Windows"),
    "address": ("t.csv", edit(2, "https://x.org/a.wav,anger,s1"), "t.csv:2: https://x.org/a.wav is an address"),
    "open quote": ("t.csv", edit(3, '"wav/b.wav,sadness,s1'), "t.csv:3: .*quote not closed"),
    "latin": ("t.csv", ROWS.replace("sadness", "tristeza\u0301").encode("utf-8").replace(b"a\xcc\x81", b"\xe1"),
              r"t.csv:3: byte 18 of the line \(0xe1\) is not UTF-8"),
    "UTF-16": ("t.csv", ROWS.encode("utf-16"), "t.csv is UTF-16 text: save the table as CSV"),
    "Excel": ("t.csv", b"PK\x03\x04\x14\x00", "t.csv is an Excel or zip file"),
    "old Excel": ("t.csv", b"\xd0\xcf\x11\xe0\xa1", "t.csv is an old Excel file"),
    "NUL": ("t.csv", ROWS.replace("c.wav", "\0c.wav"), "t.csv:4: a NUL byte"),
    "other kind": ("t.xlsx", b"PK\x03\x04", "unknown kind of table '.xlsx'; expected one of .csv"),
    "folder": ("folder.csv/x", "", "is a folder without db.yaml"),
    "one class": ("t.csv", ROWS.replace("sadness", "anger"), r"at least 2 classes are needed, found 1 \(t: anger\)"),
    "genders": ("t.csv", "file,emotion,speaker,gender\nwav/a.wav,anger,s,female\nwav/b.wav,fear,s,M\n",
                "t.csv:3: speaker s is M here and F in line 2"),
    "subset": ("t.csv", "file,emotion,split\nwav/a.wav,anger,train\nwav/b.wav,fear,later\n", "t.csv:3: split is 'later'; expected train"),
    "times": ("t.csv", "file,emotion,start,end\nwav/a.wav,anger,2,1\n", "t.csv:2: start 2 and end 1; expected 0 <= start < end"),
    "decimal comma": ("t.csv", 'file;emotion;start;end\nwav/a.wav;anger;0,5;1\n', "t.csv:2: start is '0,5'; expected a number"),
    "infinite": ("t.csv", "file,emotion,valence\nwav/a.wav,anger,inf\n", "t.csv:2: valence is 'inf'; expected a number"),
    "JSON in two cases": ("t.jsonl", '{"file": "a", "File": "b", "emotion": "c"}', "t.jsonl:1: two columns are named 'File'"),
    "JSON deep": ("t.jsonl", "[" * 100000, "t.jsonl:1: maximum recursion depth.*expected JSON Lines"),
    "label of two lines": ("t.csv", edit(3, 'wav/b.wav,"sad\nness",s1'), r"t.csv:3: emotion is 'sad\\nness', with a character that cannot"),
    "speaker of two lines": ("t.csv", edit(3, 'wav/b.wav,sadness,"s\n1"'), r"t.csv:3: speaker is 's\\n1', with a character that cannot"),
    "name of two lines": ("t.csv", edit(3, '"wav/\nb.wav",sadness,s1'), r"t.csv:3: file is 'wav/\\nb.wav', with a character that cannot"),
    "half a letter": ("t.jsonl", '{"file": "a", "emotion": "b", "text": "\\ud800"}', "t.jsonl:1: text is '.*ud800', with a character that cannot"),
    "long label": ("t.csv", edit(4, f"wav/c.wav,{'x' * 200},s2"), "t.csv:4: a class name of 200 characters; expected at most 100"),
    "a folder": ("t.csv", edit(3, "wav,sadness,s1"), r"t.csv:3: no file .*/wav \(1 of the 4 files"),
    "JSON array": ("t.json", '[{"file": "a"}]', "t.json:1: expected an object"),
    "JSON cut": ("t.jsonl", '{"file": "a", "emotion": "b"}\n{"file"', "t.jsonl:2: .*expected JSON Lines"),
    "JSON list": ("t.jsonl", '{"file": "a", "emotion": ["b"]}', r"t.jsonl:1: emotion is \[\"b\"\]; expected a text"),
    "JSON twice": ("t.jsonl", '{"file": "a", "file": "b"}', "t.jsonl:1: two values are named 'file'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad(name, place):
    file, content, message = BAD[name]
    path = place / (file or "t.csv")
    if file:
        path.parent.mkdir(exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
    if name == "folder":
        path = path.parent
    with pytest.raises((ValueError, OSError), match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def write(folder, *lines, name="t.csv"):
    """Write a table, and return its path."""
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_bad_audio_is_left_out_by_line(place, caplog):
    (place / "bad.wav").write_bytes(b"no audio")
    left_out = []
    table = write(place, *LINES, "bad.wav,anger,s3")
    entries, _ = read(table, left_out=left_out)
    assert facts(entries) == EXPECTED
    [bad] = left_out
    assert bad["where"] == f"{table}:6" and bad["id"] == "bad.wav"
    assert f"bad.wav ({table}:6)" in caplog.text


def test_absolute_and_relative_paths(place, clips):
    """Paths below data_folder are portable; others are absolute."""
    other = place / "elsewhere"
    miniature.write_clip(other / "e.wav", 7)
    lines = [f"{other}/e.wav,anger,s1", f"file://{place}/wav/a.wav,sadness,s2"]
    table = write(place / "wav", LINES[0], *lines, "wav/b.wav,anger,s1")
    entries, _ = prepare("table", place, table=table)
    root = place
    assert {e["wav"] for e in entries.values()} == {
        "{data_root}/elsewhere/e.wav",
        "{data_root}/wav/a.wav",
        "{data_root}/wav/b.wav",
    }
    entries, _ = prepare(
        "table", root / "wav", table=write(place, LINES[0], *lines)
    )
    assert {e["wav"] for e in entries.values()} == {
        f"{other}/e.wav",
        "{data_root}/a.wav",
    }
    table = write(
        place, LINES[0], "wav/a.wav,anger,s1", f"{place}/wav/a.wav,sadness,s1"
    )
    with pytest.raises(ValueError, match="t.csv:3: .* is also in line 2"):
        prepare("table", place, table=table)


def test_other_names_of_columns(place):
    table = write(place, "path,label,emotion,spk", "wav/a.wav,ang,9,s1",
                  "wav/b.wav,sad,8,s2")  # fmt: skip
    columns = {"file": "path", "emotion": "label", "speaker": "spk"}
    entries, labels = read(table, columns=columns)
    assert labels == ["ang", "sad"]
    assert {e["speaker"] for e in entries.values()} == {"s1", "s2"}
    with pytest.raises(ValueError, match="no column 'sex'; .*path, spk"):
        read(table, columns={**columns, "gender": "sex"})
    # A column must not be lost to another one of a similar name
    table = write(place, "file,emotion,TEXT", "a.wav,fear,s1")
    [record] = read_table(table, {"speaker": "TEXT"}).records
    assert record["speaker"] == "s1" and record["text"] == ""
    with pytest.raises(ValueError, match="columns: text is None; expected"):
        read_table(table, {"text": None})
    with pytest.raises(
        ValueError, match="unknown column 'sex'; expected .*gender"
    ):
        read(table, columns={"sex": "gender"})


def test_parts_of_a_file(place):
    """A part is the samples from start to end, in hash, length and waveform."""
    table = write(place, "file,emotion,speaker,start,end",
                  "wav/long.wav,anger,s1,0,0.25", "wav/long.wav,fear,s2,0.25,0.5",
                  "wav/long.wav,fear,s1,0.5,", "wav/a.wav,anger,s2,,")  # fmt: skip
    entries, _ = read(table)
    assert list(entries) == [
        "wav/a.wav",
        "wav/long.wav[0-0.25]",
        "wav/long.wav[0.25-0.5]",
        "wav/long.wav[0.5-]",
    ]
    samples, rate = soundfile.read(place / "wav/long.wav", dtype="float32")
    entry = entries["wav/long.wav[0.25-0.5]"]
    assert entry["duration"] == 0.25
    wav = entry["wav"].format(data_root=place)
    expected = samples[rate // 4 : rate // 2]
    np.testing.assert_array_equal(load_clip(wav, rate).numpy(), expected)
    cut = place / "cut.wav"
    soundfile.write(cut, expected, rate, "FLOAT")
    assert read_audio_facts(cut)[0]["audio_hash"] == entry["audio_hash"]
    assert len(load_clip(wav, 8000)) == 2000
    assert entries["wav/long.wav[0.5-]"]["duration"] == 0.5
    for line, fault in (("0.5,1.5", "end after"), ("2,", "end after")):
        left_out = []
        text = f"wav/long.wav,anger,s1,{line}"
        path = write(place, "file,emotion,speaker,start,end", text,
                     "wav/a.wav,fear,s1,,")  # fmt: skip
        assert len(read(path, left_out=left_out)[0]) == 1
        assert fault in left_out[0]["reason"]


def test_pandas_times(place):
    table = write(place, "file,emotion,start,end",
                  "wav/long.wav,anger,0 days 00:00:00.250000,0 days 00:00:00.5",
                  "wav/a.wav,fear,0 days,NaT", "wav/b.wav,fear,0,NaN")  # fmt: skip
    with pytest.raises(ValueError, match="t.csv:3: start is '0 days'"):
        read_table(table)
    text = table.read_text().replace("0 days,", "0 days 00:00:00,")
    table.write_text(text)
    records = read_table(table).records
    assert [r["segment"] for r in records] == [(0.25, 0.5), None, None]


def test_overlapping_parts_in_two_subsets(place):
    head = "file,emotion,start,end,split"
    one = "wav/long.wav,anger,0,0.5,train"
    table = write(place, head, one, "wav/long.wav,fear,0.5,1,test")
    assert len(read_table(table).records) == 2
    table = write(place, head, one, "wav/long.wav,fear,0.4,1,test")
    message = r"t.csv:3: .*\[0.4-1\] overlaps .*\[0-0.5\] in line 2"
    with pytest.raises(ValueError, match=message):
        read_table(table)


def test_sessions_are_groups_of_speakers(place):
    head = "file,emotion,speaker,gender"
    lines = [f"f{k}.wav,anger,s{k:02},{'fm'[k % 2]}" for k in range(11)]
    records = read_table(write(place, head, *lines)).records
    genders = {}
    for record in records:
        genders.setdefault(record["session"], []).append(record["gender"])
    assert sorted(genders) == list("12345")
    assert all({"F", "M"} == set(found) for found in genders.values())
    lines = [f"{line},day{k % 3}" for k, line in enumerate(lines)]
    records = read_table(write(place, head + ",session", *lines)).records
    assert {r["session"] for r in records} == {"day0", "day1", "day2"}


def test_sentences_come_from_the_text(place):
    table = write(place, "file,emotion,text", "a.wav,fear,It's 5!",
                  "b.wav,fear,its 5", "c.wav,fear,")  # fmt: skip
    found = [record["text_id"] for record in read_table(table).records]
    assert found == ["its 5", "its 5", ""]


def test_the_name_follows_what_the_table_says(place):
    """Same stem, other rows: other folders, other corpus of a report."""
    one = write(place, *LINES)
    name = Source({"corpus": "table", "table": one}).name
    assert name.startswith("t-")
    again = write(place / "wav", *(line.replace(",", ";") for line in
                                   [LINES[0], *reversed(LINES[1:])]))  # fmt: skip
    assert Source({"corpus": "table", "table": again}).name == name
    names = {name}
    for settings in (
        {"label_map": "anger=joy"},
        {"classes": "sadness,anger"},
        {"classes": "anger,sadness"},
        {"table": write(place, edit(2, "wav/a.wav,sadness,s1"), name="t.csv")},
    ):
        names.add(Source({"corpus": "table", "table": again, **settings}).name)
    assert len(names) == 5
    again.unlink()


@pytest.mark.parametrize(
    "stem",
    [
        "my data (1)",
        "x" * 250,
        "\u8a9e" * 80,
        "../x",
        "ümläut",
        "a+b",
        "CON",
        ".hidden",
        "😀",
    ],
)
def test_a_name_is_safe_as_a_folder(stem, place):
    path = place / "in" / f"{Path(stem).name}.csv"
    path.parent.mkdir()
    path.write_text(ROWS)
    name = Source({"corpus": "table", "table": [str(path)]}).name
    assert len(name.encode()) < 80
    assert Path(name).name == name and name[0] not in ".-+" and "+" not in name
    (place / name).mkdir()


def test_100_000_rows(place):
    lines = [
        f"wav/{k % 100}/clip{k}.wav,{'abcd'[k % 4]},s{k % 50},hello {k % 9}"
        for k in range(100_000)
    ]
    table = write(place, "file,emotion,speaker,text", *lines)
    started = time.process_time()
    records = read_table(table).records
    assert len(records) == 100_000
    # Three seconds on a machine of two cores; here several tests share one
    assert time.process_time() - started < 10


def test_audformat(place):
    audformat = pytest.importorskip("audformat")
    base = audformat.Database("own")
    base.schemes["speaker"] = audformat.Scheme(
        labels={"s1": {"gender": "female"}, "s2": {"gender": "male"}}
    )
    base.schemes["emotion"] = audformat.Scheme(labels=["anger", "sadness"])
    for name in ("train", "test"):
        base.splits[name] = audformat.Split(name)
    some = {"train": ("a.wav", "b.wav"), "test": ("c.wav", "d.wav")}
    for k, (name, files) in enumerate(some.items()):
        index = audformat.filewise_index([f"wav/{file}" for file in files])
        base[f"emotion.{name}"] = audformat.Table(index, split_id=name)
        table = base[f"emotion.{name}"]
        table["emotion"] = audformat.Column(scheme_id="emotion")
        table["emotion"].set(["anger", "sadness"])
        table["speaker"] = audformat.Column(scheme_id="speaker")
        table["speaker"].set([f"s{k + 1}"] * 2)
    base.save(str(place / "base"), storage_format="csv")
    (place / "base" / "wav").symlink_to(place / "wav")
    for path in (place / "base", place / "base" / "db.yaml"):
        entries, labels = read(path)
        assert facts(entries) == EXPECTED and labels == ["anger", "sadness"]
        found = {
            (e["speaker"], e["gender"], e["split"]) for e in entries.values()
        }
        assert found == {("s1", "F", "train"), ("s2", "M", "test")}
    (place / "base" / "db.emotion.train.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle, which is not read"):
        read(place / "base")
