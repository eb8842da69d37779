"""Preparation that is killed, repeated with changes, or run several times at once."""

import json
import os
import random
import shutil
import time

import miniature_corpora
import processes
import pytest
from nightly import NIGHT
from resumed_runs import run

KILLS = 200 if NIGHT else 6


def miniature_iemocap(folder):
    """Write a miniature IEMOCAP, which has several label sets."""
    return miniature_corpora.build("iemocap", folder)


def prepare(corpus, output, *options, log=os.devnull):
    """Start a process that prepares the data as the recipe does."""
    return processes.start(
        processes.prepare, corpus, output, list(options), log=log
    )


def files(folder):
    """Map names to contents of the files of a preparation, without temporary ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Corpus and manifests of an undisturbed preparation, and its seconds."""
    folder = tmp_path_factory.mktemp("fresh")
    # The first process starts the server
    for place in (folder / "first", folder / "second"):
        started = time.monotonic()
        process = prepare(place / "corpus", place / "output")
        assert processes.finish(process) == 0
        seconds = time.monotonic() - started
    found = files(folder / "first")
    assert files(folder / "second") == found
    names = {f"output/save/{s}.json" for s in ("train", "valid", "test", "run")}
    assert names <= found.keys() and "corpus/labels.tsv" in found
    return found, seconds


def test_killed(fresh, tmp_path):
    """The next start completes a killed preparation like an undisturbed one."""
    expected, seconds = fresh
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    parts = 0
    for number in range(KILLS):
        place = tmp_path / str(number)
        process = prepare(place / "corpus", place / "output")
        processes.wait_for((place / "corpus").exists, process)
        time.sleep(draw.uniform(0, 0.7) * seconds)
        process.kill()
        processes.finish(process)
        left = files(place) if place.exists() else {}
        parts += 0 < len(left) < len(expected)
        # Files may be missing, but none is incomplete
        for name, content in left.items():
            assert content == expected[name], f"{name}, seed {seed}"
        log = tmp_path / "log"
        process = prepare(place / "corpus", place / "output", log=log)
        assert processes.finish(process) == 0, log.read_text()
        assert files(place) == expected, f"kill {number}, seed {seed}"
        shutil.rmtree(place)
    print(f"{parts} of {KILLS} kills left a part behind")
    assert parts >= KILLS // 5, "too few kills hit a preparation"


def test_several_at_once(fresh, tmp_path):
    """Independent jobs prepare the same two folders."""
    expected, _ = fresh
    log = tmp_path / "log"
    for number in range(2):
        place = tmp_path / str(number)
        started = [
            prepare(place / "corpus", place / "output", log=log)
            for _ in range(4)
        ]
        codes = [processes.finish(one) for one in started]
        assert codes == [0] * 4, log.read_text()
        assert files(place) == expected


OTHER_VOICES = "--corpus_options={speakers: 6, sentences: 1, seed: 9}"
CHANGES = {
    "seed": (["--protocol=random"], ["--protocol=random", "--seed=7"]),
    "fold": (["--fold=0"], ["--fold=1"]),
    "protocol": (["--protocol=session"], ["--protocol=speaker"]),
    "label set": (["--label_set=4class"], ["--label_set=4class-no-exc"]),
    "path": ([], [OTHER_VOICES]),
    "folds": (
        ["--protocol=random", "--n_folds=5"],
        ["--protocol=random", "--n_folds=2"],
    ),
}


def corpora(change, tmp_path):
    """Data folder before and after a change, and their options."""
    if change == "label set":
        corpus = miniature_iemocap(tmp_path / "iemocap")
        options = ["--corpus=iemocap", "--corpus_options={}"]
        return [corpus, corpus], [*options, "--valid_speakers=1"]
    if change == "path":
        # The same ids, other voices
        return [tmp_path / "one", tmp_path / "other"], []
    return [tmp_path / "corpus"] * 2, []


@pytest.mark.parametrize("change", CHANGES)
def test_changed(tmp_path, change):
    """Before training, a changed preparation is done again, as in a new folder."""
    before, after = CHANGES[change]
    (old, new), common = corpora(change, tmp_path)
    log = tmp_path / "log"
    for corpus, output, options in (
        (old, "changed", before),
        (new, "new", after),
        (new, "changed", after),
    ):
        process = prepare(corpus, tmp_path / output, *common, *options, log=log)
        assert processes.finish(process) == 0, log.read_text()
        if options == before and output == "changed":
            stale = files(tmp_path / "changed")
    found, expected = files(tmp_path / "changed"), files(tmp_path / "new")
    assert found == expected
    assert found != stale


@pytest.mark.parametrize("change", ["fold", "path"])
def test_changed_after_training(tmp_path, change):
    """A trained run is not continued on other data; an error says so."""
    corpus, output, log = tmp_path / "a", tmp_path / "out", tmp_path / "log"
    run(corpus, output, [], ("boundary", 1))
    before = files(output / "save")
    options = ["--fold=1"]
    if change == "path":
        corpus = tmp_path / "b"
        options = [OTHER_VOICES]
    assert processes.finish(prepare(corpus, output, *options, log=log)) == 1
    name = {"fold": "fold", "path": "audio_hash"}[change]
    assert f"holds a run with another {name} (" in log.read_text()
    assert files(output / "save") == before
    run_json = json.loads((output / "save" / "run.json").read_text())
    assert run_json["fold"] == 0


def test_other_place_of_the_same_data(tmp_path):
    """Training continues after the corpus has moved."""
    corpus, output = tmp_path / "a", tmp_path / "out"
    run(corpus, output, [], ("boundary", 1))
    corpus.rename(tmp_path / "b")
    run(tmp_path / "b", output, [])
