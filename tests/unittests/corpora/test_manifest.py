"""The manifest: what survives damaged audio, and what the schema refuses."""

import json
import logging
import os

import numpy as np
import pytest
import soundfile
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_dslstm.audio import open_audio
from speechbrain_dslstm.corpora import clips, manifest
from speechbrain_dslstm.corpora.clips import read_audio_facts
from speechbrain_dslstm.corpora.manifest import check_dimensions, to_scale


def record(path, **changes):
    """A record of a clip that lies at a path."""
    return {
        "id": path.stem,
        "path": path,
        "emotion": "anger",
        "speaker": "1",
        "gender": "F",
        "session": "1",
        "dialogue": "",
        "text_id": "t1",
        "text": "",
        **changes,
    }


def write(path, seconds=0.5, subtype="PCM_16", seed=0):
    """A clip of noise."""
    samples = 0.1 * np.random.default_rng(seed).normal(
        size=int(16000 * seconds)
    )
    soundfile.write(path, samples, 16000, subtype)
    return path


@pytest.fixture
def entries(tmp_path):
    """Two good entries."""
    paths = [write(tmp_path / f"{n}.wav", seed=i) for i, n in enumerate("ba")]
    return manifest.build_manifest(map(record, paths), tmp_path, ["anger"])


def test_sorted_and_independent_of_record_order(tmp_path, entries):
    assert list(entries) == ["a", "b"]
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    again = manifest.build_manifest(map(record, paths), tmp_path, ["anger"])
    assert again == entries
    assert entries["a"]["wav"] == "{data_root}/a.wav"
    assert entries["a"]["duration"] == 0.5


def test_hash_is_of_the_samples_not_of_the_file(tmp_path):
    wav = write(tmp_path / "a.wav")
    samples, rate = soundfile.read(wav)
    soundfile.write(tmp_path / "a.flac", samples, rate, "PCM_16")
    other = write(tmp_path / "b.wav", seed=1)
    facts = [read_audio_facts(p) for p in (wav, tmp_path / "a.flac", other)]
    assert facts[0] == facts[1]
    assert facts[0][0]["audio_hash"] != facts[2][0]["audio_hash"]


def test_hash_depends_on_the_order_of_samples_and_of_pieces(tmp_path):
    """A file is decoded in pieces of ten seconds."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(-0.5, 0.5, (2, 4000 * 10))
    orders = {
        "same": [first, second],
        "again": [first, second],
        "swapped": [second, first],
        "backwards": [first[::-1], second],
        "neighbours": [first[[1, 0, *range(2, len(first))]], second],
    }
    hashes = {}
    for name, parts in orders.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.concatenate(parts), 4000)
        hashes[name] = read_audio_facts(path)[0]["audio_hash"]
    assert hashes["same"] == hashes["again"]
    assert len(set(hashes.values())) == len(hashes) - 1


def test_a_long_clip_is_refused_by_its_header_and_while_it_is_decoded(
    tmp_path, monkeypatch
):
    path = write(tmp_path / "a.wav", seconds=0.5)
    monkeypatch.setattr(clips, "LONGEST_CLIP", 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "decode", None)
        assert read_audio_facts(path) == (None, "too long")
    # A header that claims too little would pass
    monkeypatch.setattr(clips, "open_audio", lambda path, _: open_audio(path))
    assert read_audio_facts(path) == (None, "too long")


def cut(path, size):
    """Leave the first bytes of a file only."""
    path.write_bytes(path.read_bytes()[:size])


def damaged(folder):
    """Files with every kind of damage, by what is said of them."""
    files = {"missing": folder / "gone.wav"}
    files["unreadable"] = folder / "text.wav"
    files["unreadable"].write_text("no audio")
    files["empty"] = write(folder / "empty.wav", 0)
    files["truncated"] = write(folder / "cut.wav")
    cut(files["truncated"], 5000)
    bad = np.zeros(100, "float32")
    bad[3] = np.nan
    files["with NaN or infinite samples"] = folder / "nan.wav"
    soundfile.write(folder / "nan.wav", bad, 16000, "FLOAT")
    return files


def test_each_damage_is_named(tmp_path):
    for kind, path in damaged(tmp_path).items():
        assert read_audio_facts(path) == (None, kind)
    cut(write(tmp_path / "cut.flac"), 5000)
    assert read_audio_facts(tmp_path / "cut.flac")[1] == "unreadable"
    (tmp_path / "nothing.wav").touch()
    assert read_audio_facts(tmp_path / "nothing.wav")[1] == "unreadable"


def test_others_survive_damage_and_each_kind_is_warned_of(tmp_path, caplog):
    files = damaged(tmp_path)
    good = write(tmp_path / "good.wav")
    records = [record(p) for p in (*files.values(), good)]
    with caplog.at_level(logging.WARNING):
        found = manifest.build_manifest(records, tmp_path, ["anger"])
    assert list(found) == ["good"]
    assert len(caplog.messages) == len(files)
    for kind, path in files.items():
        [line] = [m for m in caplog.messages if f"clips {kind}," in m]
        assert line.startswith("1 of 6 ")
        assert path.name in line


def test_many_are_counted_and_a_few_named(tmp_path, caplog):
    records = [record(tmp_path / f"{n}.wav") for n in range(9)]
    records.append(record(write(tmp_path / "z.wav")))
    with caplog.at_level(logging.WARNING):
        manifest.build_manifest(records, tmp_path, ["anger"])
    assert caplog.messages == [
        "9 of 10 clips missing, skipped: 0.wav, 1.wav, 2.wav, ..."
    ]


def test_second_of_two_with_one_id_is_dropped(tmp_path, caplog):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.wav", seed=ord(name))
    records = [record(tmp_path / n / "a.wav") for n in ("y", "x")]
    with caplog.at_level(logging.WARNING):
        found = manifest.build_manifest(records, tmp_path, ["anger"])
    assert found["a"]["wav"] == "{data_root}/x/a.wav"
    assert "a (y/a.wav)" in caplog.text
    # a first one that cannot be read does not cost the second
    (tmp_path / "x" / "a.wav").write_text("")
    found = manifest.build_manifest(records, tmp_path, ["anger"])
    assert found["a"]["wav"] == "{data_root}/y/a.wav"


def test_label_outside_the_set(tmp_path, caplog):
    good = record(write(tmp_path / "a.wav"))
    odd = record(write(tmp_path / "b.wav"), emotion="zzz")
    with caplog.at_level(logging.WARNING):
        found = manifest.build_manifest([good, odd], tmp_path, ["anger"])
    assert list(found) == ["a"]
    assert "b.wav (zzz)" in caplog.text


def test_nothing_left_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: 1 found; 1 missing"):
        manifest.build_manifest(
            [record(tmp_path / "a.wav")], tmp_path, ["anger"]
        )


def test_written_and_read_back(tmp_path, entries):
    path = tmp_path / "new" / "train.json"
    backwards = dict(reversed(entries.items()))
    manifest.write_manifest(path, backwards)
    assert manifest.read_manifest(path) == entries
    assert list(manifest.read_manifest(path)) == list(entries)
    assert os.listdir(path.parent) == ["train.json"]


def test_failed_write_leaves_the_old_file(tmp_path, entries, monkeypatch):
    path = tmp_path / "new" / "train.json"
    manifest.write_manifest(path, entries)
    before = path.read_bytes()

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        manifest.write_manifest(path, {"a": entries["a"]})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["train.json"]


def test_speechbrain_reads_it_with_braces_and_all(tmp_path):
    folder = tmp_path / "{odd} name"
    folder.mkdir()
    rows = [record(write(folder / "a.wav"), text="{x} ünd", text_id="{x}")]
    found = manifest.build_manifest(rows, tmp_path, ["anger"])
    manifest.write_manifest(tmp_path / "m.json", found)
    data = DynamicItemDataset.from_json(
        tmp_path / "m.json", {"data_root": str(tmp_path)}
    )
    data.set_output_keys(["wav", "text", "duration"])
    assert data[0]["wav"] == str(folder / "a.wav")
    assert data[0]["text"] == "(x) ünd"


def test_names_that_braces_make_equal_are_refused(tmp_path):
    rows = [
        record(write(tmp_path / f"{name}.wav"), speaker=name, id=name)
        for name in ("(x)", "{x}")
    ]
    with pytest.raises(ValueError, match="speaker '{x}' and '\\(x\\)' cannot"):
        manifest.build_manifest(rows, tmp_path, ["anger"])


BAD = [
    ({"gender": "x"}, "b: gender is 'x', expected 'F', 'M' or ''"),
    ({"duration": 0.0}, "b: duration is 0.0"),
    ({"duration": "1"}, "b: duration is '1', expected float"),
    ({"duration": float("nan")}, "b: duration is nan"),
    ({"speaker": 3}, "b: speaker is 3, expected str"),
    ({"emotion": ""}, "b: emotion is empty"),
    ({"wav": "elsewhere/a.wav"}, "b: wav is 'elsewhere/a.wav'"),
    ({"text": "{x}"}, "b: text is '{x}', which has an unescaped brace"),
    ({"valence": True}, "b: valence is True, expected float"),
    ({"votes": {"E1": "Anger"}}, "b: votes is"),
    ({"votes": ["Anger"]}, "b: votes is"),
    ({"emotoin": "x"}, "b: unknown key emotoin"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_schema_names_id_and_key(tmp_path, entries, change, message):
    entries["b"].update(change)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError) as error:
        manifest.read_manifest(path)
    assert f"{path}: {message}" in str(error.value)


@pytest.mark.parametrize("key", list(manifest.REQUIRED))
def test_required_keys(entries, key):
    del entries["b"][key]
    with pytest.raises(ValueError, match=f"b: {key} is missing"):
        manifest.check_entries(entries)


def test_no_json_and_no_repeats(tmp_path):
    path = tmp_path / "m.json"
    for text, message in (
        ("{", "m.json: "),
        ("[]", "non-empty object"),
        ("{}", "non-empty object"),
        ('{"a": {}, "a": {}}', "duplicate key 'a'"),
        ('{"a": 1}', "a: the entry is 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            manifest.read_manifest(path)


def test_dimensions_on_a_scale_and_missing_ones():
    assert to_scale([1.0, 5.0]).tolist() == [-1.0, 1.0]
    entries = {"a": {"valence": 3.0}, "b": {}}
    check_dimensions(entries, [], "emodb")
    with pytest.raises(ValueError, match=r"emodb has no valence \(utterance b"):
        check_dimensions(entries, ["valence"], "emodb")
