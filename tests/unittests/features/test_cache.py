"""The feature cache: hits, keys, damage, several processes and kills."""

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.features import (
    MFCC39,
    FeatureCache,
    FeatureMemory,
    LogMelSpectrogram,
    cache as feature_cache,
)
from speechbrain_dslstm.features.cache import SpeedCache

EXTRACTORS = {
    "mfcc": MFCC39(),
    "mel_x": LogMelSpectrogram(n_fft=512),
    "mel_y": LogMelSpectrogram(n_fft=1024),
}
CLIPS = 4
opened = []
sys.addaudithook(
    lambda event, args: opened.append(str(args[0])) if event == "open" else None
)


class Loader:
    """Loads a waveform and counts how often it is asked to."""

    def __init__(self, wav=None):
        self.wav = torch.rand(4000) - 0.5 if wav is None else wav
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.wav


def not_called():
    """A waveform that must not be needed."""
    raise AssertionError("the audio was loaded")


@pytest.fixture
def cache(tmp_path):
    """An empty cache for the three features."""
    return FeatureCache(tmp_path / "cache", EXTRACTORS, "emodb")


@pytest.fixture
def clips(speech_files, tmp_path):
    """Copies of some clips."""
    return [Path(shutil.copy(file, tmp_path)) for file in speech_files[:CLIPS]]


def same(actual, expected):
    """Whether two dicts of features are equal."""
    return list(actual) == list(expected) and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


def files_in(cache):
    """All files below a cache's folder."""
    return sorted(p for p in cache.folder.rglob("*") if p.is_file())


# Hits and misses


def test_a_miss_computes_and_a_hit_reads(cache):
    load = Loader()
    feats = cache.get(load, audio_hash="a")
    for name, extractor in EXTRACTORS.items():
        assert torch.equal(feats[name], extractor(load.wav[None])[0])
        assert feats[name].dtype == torch.float32
    assert load.calls == 1
    again = cache.get(not_called, audio_hash="a")
    assert same(again, feats)
    assert len(files_in(cache)) == len(EXTRACTORS)


def epoch(cache, clips):
    """The features of all clips, and how many were loaded and read."""
    loaders = [Loader(load_audio(path)) for path in clips]
    opened.clear()
    feats = [
        cache.get(load, path) for load, path in zip(loaders, clips, strict=True)
    ]
    reads = sum(str(path) in opened for path in clips)
    return feats, sum(load.calls for load in loaders), reads


def test_an_epoch_reads_no_audio(cache, clips):
    feats, loads, reads = epoch(cache, clips)
    assert (loads, reads) == (CLIPS, CLIPS)
    again, loads, reads = epoch(cache, clips)
    assert (loads, reads) == (0, 0)
    assert all(map(same, again, feats))
    # A new process reads each file once, for its hash
    later = FeatureCache(cache.folder, EXTRACTORS, "emodb")
    assert epoch(later, clips)[1:] == (0, CLIPS)
    assert epoch(later, clips)[1:] == (0, 0)


def test_with_a_hash_no_audio_is_needed(cache, clips):
    for path in clips:
        wav = load_audio(path)
        cache.get(lambda wav=wav: wav, audio_hash=path.name)
        path.unlink()
    opened.clear()
    for path in clips:
        cache.get(not_called, audio_hash=path.name)
    assert len(opened) == CLIPS * len(EXTRACTORS)
    assert all(str(cache.folder) in name for name in opened)


@pytest.mark.parametrize("samples", [400, 3000, 4608, 9000])
def test_short_clips_are_as_without_a_cache(tmp_path, samples):
    """The model puts silence behind a clip that its CNNs cannot take."""
    model, wav = DualLevelClassifier(4), torch.rand(samples) - 0.5
    expected = model.extract(wav.unsqueeze(0))
    extractors = {name: one.extractor for name, one in model.streams.items()}
    cache = FeatureCache(tmp_path, extractors, "short")
    clips = SpeedCache(
        *(cache, lambda path, percent: wav),
        *(16000, model.min_samples),
    )
    feats = clips.get("a.wav", "a0", samples / 16000, 100)
    for name, (value, counts) in expected.items():
        assert len(feats[name]) == counts
        torch.testing.assert_close(feats[name], value[0])


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_each_speed_is_read_once(tmp_path, kind):
    loads = []

    def load(path, percent):
        loads.append(percent)
        return torch.rand(100 * percent)

    extractors = {"mfcc": MFCC39()}
    cache = FeatureMemory(extractors)
    if kind == "disk":
        cache = FeatureCache(tmp_path, extractors, "clips")
    clips = SpeedCache(cache, load, 16000, 400)
    for speed in (100, 90, 100, 110, 90):
        clips.get("a.wav", "a0", 1.0, speed)
    assert loads == [100, 90, 110]


def test_memory_keeps_what_has_room():
    """The second clip does not fit; a process that receives it keeps nothing."""
    extractors = {"mfcc": MFCC39()}
    wavs = {"a": torch.rand(16000), "b": torch.rand(16000)}
    loads = []

    def get(memory, name):
        def load():
            loads.append(name)
            return wavs[name]

        return memory.get(load, audio_hash=name)["mfcc"]

    size = get(FeatureMemory(extractors), "a").nbytes
    memory = FeatureMemory(extractors, room=2 * size - 1)
    loads.clear()
    found = [get(memory, name) for name in "aabb"]
    assert loads == ["a", "b", "b"]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    sent = pickle.loads(pickle.dumps(memory))
    assert torch.equal(get(sent, "a"), found[0])
    assert loads == ["a", "b", "b", "a"] and not sent.kept


def test_systems_share_but_what_the_model_pads(tmp_path):
    cache = FeatureCache(tmp_path, {"mfcc": MFCC39()}, "clips")
    loads = []

    def load(path, percent):
        loads.append(path)
        return torch.rand(16000 if path == "long" else 3000)

    for least in (1, 4608):
        clips = SpeedCache(cache, load, 16000, least)
        frames = len(clips.get("long", "a0", 1.0, 100)["mfcc"])
        assert frames == 98
        frames = len(clips.get("short", "a1", 3000 / 16000, 100)["mfcc"])
        assert frames == (17 if least == 1 else 27)
    assert loads == ["long", "short", "short"]
    # Other rates of the same samples are other audio
    SpeedCache(cache, load, 16000, 1).get("long", "a0", 2.0, 100)
    SpeedCache(cache, load, 8000, 1).get("long", "a0", 1.0, 100)
    assert len(loads) == 5


def test_settings_that_are_no_numbers(tmp_path):
    extractor = MFCC39(win_length=np.int64(400))
    with pytest.raises(ValueError, match="settings of .*MFCC39.*int64"):
        FeatureCache(tmp_path, {"mfcc": extractor}, "clips")


def test_folder_deleted_in_mid_write(cache, monkeypatch):
    """As the module says it may be, at any time."""
    write, gone = Path.write_bytes, []

    def deleted(path, data):
        if not gone:
            gone.append(shutil.rmtree(path.parent))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", deleted)
    cache.get(lambda: torch.rand(8000), audio_hash="a0")
    monkeypatch.undo()
    assert gone and cache.get(lambda: 1 / 0, audio_hash="a0")


def test_features_of_other_systems_are_shared(cache):
    cache.get(Loader(), audio_hash="a")
    alone = FeatureCache(cache.folder, {"c": MFCC39()}, "emodb")
    assert list(alone.get(not_called, audio_hash="a")) == ["c"]
    more = {"mfcc": MFCC39(), "mel": LogMelSpectrogram(n_fft=256)}
    load = Loader()
    FeatureCache(cache.folder, more, "emodb").get(load, audio_hash="a")
    assert load.calls == 1
    assert len(files_in(cache)) == len(EXTRACTORS) + 1


# Keys


@pytest.mark.parametrize(
    "changed", ["settings", "corpus", "version", "variant", "hash"]
)
def test_what_changes_the_key(changed, cache, monkeypatch):
    wav = Loader().wav
    before = cache.get(lambda: wav, audio_hash="a")
    extractors, corpus, key = EXTRACTORS, "emodb", {"audio_hash": "a"}
    if changed == "settings":
        extractors = EXTRACTORS | {"mel_x": LogMelSpectrogram(scale=3.0)}
    elif changed == "corpus":
        corpus = "nemo"
    elif changed == "version":
        monkeypatch.setattr(feature_cache, "FEATURES_VERSION", -1)
    elif changed == "variant":
        key["variant"] = "speed 0.9"
    else:
        key["audio_hash"] = "b"
    load = Loader(0.5 * wav)
    other = FeatureCache(cache.folder, extractors, corpus)
    after = other.get(load, **key)
    assert load.calls == 1
    assert not torch.equal(after["mel_x"], before["mel_x"])
    assert same(other.get(not_called, **key), after)
    assert same(cache.get(not_called, audio_hash="a"), before)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_each_setting_changes_the_key(name):
    extractor = EXTRACTORS[name]
    keys = {feature_cache._key(extractor, "emodb")}
    for setting, value in extractor.get_config().items():
        other = type(extractor)()
        setattr(other, setting, value + 1)
        keys.add(feature_cache._key(other, "emodb"))
    assert len(keys) == 1 + len(extractor.get_config())


def test_a_moved_class_keeps_its_entries(monkeypatch):
    before = feature_cache._key(EXTRACTORS["mfcc"], "emodb")
    monkeypatch.setattr(MFCC39, "__module__", "speechbrain_dslstm.elsewhere")
    assert feature_cache._key(EXTRACTORS["mfcc"], "emodb") == before


def test_changed_content_of_a_file(cache, clips):
    path, other = clips[:2]
    before = cache.get(lambda: load_audio(path), path)
    shutil.copy(other, path)
    load = Loader(load_audio(path))
    after = cache.get(load, str(path))
    assert load.calls == 1
    assert after["mfcc"].shape != before["mfcc"].shape


def test_a_moved_file_keeps_its_entry(cache, clips):
    feats = cache.get(lambda: load_audio(clips[0]), clips[0])
    moved = clips[0].rename(clips[0].with_name("moved.flac"))
    assert same(cache.get(not_called, moved), feats)


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:60],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-20] + b"\x55" + data[-19:],
        lambda data: b"\xff" * len(data),
    ],
    ids=["empty", "5", "60", "cut", "longer", "flipped", "garbage"],
)
def test_damaged_entry_is_computed_again(damage, cache, caplog):
    load = Loader()
    feats = cache.get(load, audio_hash="a")
    file = files_in(cache)[0]
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert same(cache.get(load, audio_hash="a"), feats)
    assert load.calls == 2
    assert f"{file} of the feature cache is damaged" in caplog.text
    assert same(cache.get(not_called, audio_hash="a"), feats)


# Folders that cannot be written to


def test_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to the feature cache"):
        FeatureCache(tmp_path / "file" / "cache", EXTRACTORS, "emodb")


def test_read_only_folder(cache, monkeypatch):
    feats = cache.get(Loader(), audio_hash="a")

    # The permissions of a folder do not stop a superuser
    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert same(cache.get(not_called, audio_hash="a"), feats)
    message = "Read-only file system; choose another folder"
    with pytest.raises(ValueError, match=message):
        cache.get(Loader(), audio_hash="b")


# Processes


def in_processes(*calls):
    """Run each call in a process of its own; their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_two_processes_write_one_entry(cache, caplog):
    wav = Loader().wav
    expected = cache.get(lambda: wav, audio_hash="seen")

    def work():
        for step in range(40):
            for name, value in expected.items():
                cache._write(cache.entries[name] / "x.safetensors", value)
            feats = cache.get(lambda: wav, audio_hash=str(step))
            assert same(feats, expected)
            for name, value in expected.items():
                # None would be a damaged entry
                file = cache.entries[name] / "x.safetensors"
                assert torch.equal(feature_cache._read(file), value)

    assert in_processes(work, work) == [0, 0]
    assert len(files_in(cache)) == 42 * len(EXTRACTORS)
    for step in range(40):
        assert same(cache.get(not_called, audio_hash=str(step)), expected)
    assert not caplog.text


def test_kill_in_mid_write_leaves_no_half_entry(cache):
    wav = Loader().wav

    def die(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        Path.write_bytes = die
        cache.get(lambda: wav, audio_hash="a")

    assert in_processes(work) == [-signal.SIGKILL]
    assert [path.suffix for path in files_in(cache)] == [".tmp"]
    load = Loader(wav)
    cache.get(load, audio_hash="a")
    assert load.calls == 1
    assert cache.get(not_called, audio_hash="a")


class Clips(torch.utils.data.Dataset):
    """The MFCCs of clips, through a cache."""

    def __init__(self, cache, paths, load):
        self.cache, self.paths, self.load = cache, paths, load

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        load = self.load or (lambda: load_audio(path))
        return self.cache.get(load, audio_hash=path.name)["mfcc"]


def test_in_workers_of_a_data_loader(cache, clips):
    def epoch(cache, load):
        dataset = Clips(cache, clips, load)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=2, timeout=60
        )
        return [feats.clone() for feats in loader]

    first = epoch(cache, None)
    again = epoch(pickle.loads(pickle.dumps(cache)), not_called)
    for one, two, path in zip(first, again, clips, strict=True):
        expected = EXTRACTORS["mfcc"](load_audio(path)[None])[0]
        assert torch.equal(one, expected)
        assert torch.equal(two, expected)


def test_the_models_extractors_stay_as_they_are(tmp_path):
    extractor = MFCC39().double().train()
    cache = FeatureCache(tmp_path, {"mfcc": extractor}, "emodb")
    feats = cache.get(Loader(), audio_hash="a")
    assert feats["mfcc"].dtype == torch.float32
    assert extractor.mel.dtype == torch.float64


# Bad input


@pytest.mark.parametrize(
    ("extractors", "corpus", "message"),
    [
        ({}, "emodb", "at least one extractor"),
        (
            {"x": torch.nn.Identity()},
            "emodb",
            "Identity has no method get_config",
        ),
        (EXTRACTORS, "", "name of a folder, got ''"),
        (EXTRACTORS, "..", "name of a folder, got '..'"),
        (EXTRACTORS, "a/b", "name of a folder, got 'a/b'"),
    ],
)
def test_bad_arguments(extractors, corpus, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FeatureCache(tmp_path, extractors, corpus)


def test_bad_keys_and_waveforms(cache, clips):
    with pytest.raises(ValueError, match="got neither"):
        cache.get(not_called)
    with pytest.raises(ValueError, match="got both"):
        cache.get(not_called, clips[0], "a")
    with pytest.raises(ValueError, match=r"\[batch, samples\]"):
        cache.get(lambda: torch.rand(1, 800), audio_hash="a")
    assert not files_in(cache)
