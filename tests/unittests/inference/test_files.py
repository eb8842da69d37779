"""Many files and long files have the same answers as single ones, in bounded memory."""

import math
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import AudioError, load_audio
from speechbrain_dslstm.inference import (
    Segment,
    files as files_module,
    folders,
)
from speechbrain_dslstm.inference.files import _batches
from speechbrain_dslstm.inference.folders import find_audio
from speechbrain_dslstm.inference.long_recordings import cut_windows


@pytest.fixture
def mixed_folder(tmp_path, speech_clips):
    """Make a folder of speech in several formats, silence and broken files."""
    folder = tmp_path / "mixed" / "below"
    folder.mkdir(parents=True)
    for k, ending in enumerate(["wav", "flac", "ogg", "mp3"]):
        path = folder / f"speech{k}.{ending}"
        soundfile.write(path, speech_clips[k].numpy(), 16000)
    long = torch.cat(speech_clips[:30]).numpy()
    soundfile.write(folder / "long.flac", long, 16000)
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "long_silence.wav", np.zeros(16000 * 70), 16000)
    soundfile.write(folder / "short.wav", speech_clips[0][:1000], 16000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    (folder / "broken.wav").write_text("no audio")
    (folder / "notes.txt").write_text("no audio")
    (folder / "._speech0.wav").write_text("of macOS")
    return tmp_path / "mixed"


def test_a_folder(classifier, mixed_folder):
    """Results are in order, bad files have reasons, good files their own answers."""
    assert max(map(len, map(load_audio, mixed_folder.rglob("long.flac"))))
    results = classifier.classify_files(mixed_folder)
    by_name = {result.path.name: result for result in results}
    assert list(by_name) == sorted(by_name) and len(by_name) == 10
    for name, reason in [
        ("silence.wav", "silence"),
        ("long_silence.wav", "silence"),
        ("short.wav", "too short"),
        ("empty.wav", None),
        ("broken.wav", None),
    ]:
        assert by_name[name].label is None and by_name[name].answer is None
        assert by_name[name].log_posteriors is None
        assert by_name[name].reason == reason
        assert name in by_name[name].error
    for name in ["speech0.wav", "speech1.flac", "speech2.ogg", "speech3.mp3"]:
        result = by_name[name]
        expected = classifier.classify_file(result.path)
        assert result.error is None
        torch.testing.assert_close(
            result.answer[0], expected[0], atol=1e-5, rtol=0
        )
        for a, b in zip(result.answer[1:3], expected[1:3], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert result.answer[3] == expected[3] == [result.label]
    total = by_name["long.flac"].log_posteriors.exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


def test_threads_change_nothing(classifier, mixed_folder, speech_files):
    """The same results, to the last bit, of files and of one file object twice."""
    long = open(mixed_folder / "below" / "long.flac", "rb")
    with long:
        given = [mixed_folder, *speech_files[:20], long, long]
        one, *others = (
            classifier.classify_files(given, threads=threads)
            for threads in (1, 2, 5, None)
        )
        assert long.tell() == 0
    assert sum(result.error is None for result in one) > 20
    for results in others:
        assert len(results) == len(one)
        for result, expected in zip(results, one, strict=True):
            assert (result.path, result.label) == (
                expected.path,
                expected.label,
            )
            assert (result.error, result.reason) == (
                expected.error,
                expected.reason,
            )
            if expected.label is not None:
                assert torch.equal(
                    result.log_posteriors, expected.log_posteriors
                )
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        classifier.classify_files(given[:-2], threads=0)


def test_an_error_of_the_model_is_raised(classifier, speech_files, monkeypatch):
    """From whatever thread; torch's number of threads is that of before."""
    before = torch.get_num_threads()

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(classifier, "classify_batch", broken)
    for threads in (1, 2):
        with pytest.raises(RuntimeError, match="out of memory"):
            classifier.classify_files(speech_files[:20], threads=threads)
    assert torch.get_num_threads() == before


def test_the_order_of_a_list(classifier, speech_files, tmp_path):
    wanted = [speech_files[k] for k in (5, 2, 9, 0, 2)]
    wanted.insert(2, tmp_path / "gone.wav")
    results = classifier.classify_files([str(path) for path in wanted])
    assert [result.path for result in results] == wanted
    assert "gone.wav" in results[2].error
    for result in results[:2] + results[3:]:
        expected = classifier.classify_file(result.path)[0]
        torch.testing.assert_close(
            result.answer[0], expected, atol=1e-5, rtol=0
        )


def test_options(classifier, mixed_folder):
    silence = next(mixed_folder.rglob("silence.wav"))
    speech = next(mixed_folder.rglob("speech0.wav"))
    long = next(mixed_folder.rglob("long.flac"))
    found = classifier.classify_files([silence], speech_only=False)[0]
    assert found.label in classifier.labels
    for result in classifier.classify_files([speech, long], unknown_below=1.0):
        assert result.answer[3] == ["unknown"] and result.answer[1] < 0
    with pytest.raises(ValueError, match=r"unknown_below must be in \[0, 1\]"):
        classifier.classify_file(speech, unknown_below=1.5)


def test_unknown_leaves_the_numbers_alone(classifier, speech_files):
    plain = classifier.classify_file(speech_files[0])
    score = plain[1].exp().item()
    for threshold, label in [(score - 0.01, plain[3]), (score + 0.01, None)]:
        found = classifier.classify_file(speech_files[0], threshold)
        for a, b in zip(found[:3], plain[:3], strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0)
        assert found[3] == (label or ["unknown"])


def test_an_answer_at_the_threshold_is_known(classifier):
    out_prob = torch.tensor([[0.5, 0.25, 0.25]]).log()
    score = out_prob[0, 0].exp().item()
    assert classifier.label_posteriors(out_prob, score)[3] == ["sadness"]
    above = np.nextafter(np.float32(score), np.float32(1)).item()
    assert classifier.label_posteriors(out_prob, above)[3] == ["unknown"]


@pytest.mark.parametrize(
    ("fault", "match"),
    [(float("nan"), "NaN or infinite"), (1001.0, "samples up to 1001")],
)
def test_samples_that_are_no_audio(
    fault, match, classifier, speech_clips, tmp_path
):
    """Every path from a file or a waveform to an answer checks the samples."""
    wav = torch.cat(speech_clips[:2])
    wav[-1] = fault
    path = tmp_path / "odd.wav"
    soundfile.write(path, wav.numpy(), 16000, "FLOAT")
    for speech_only in (True, False):
        with pytest.raises(AudioError, match=match):
            classifier.classify_file(path, speech_only=speech_only)
        with pytest.raises(AudioError, match=match):
            list(classifier.classify_long(path, speech_only=speech_only))
        [result] = classifier.classify_files([path], speech_only=speech_only)
        assert result.answer is None and match.split()[0] in result.error
    # Longer than a clip: answered by its windows
    soundfile.write(path, wav.repeat(40)[: 61 * 16000].numpy(), 16000, "FLOAT")
    [result] = classifier.classify_files([path])
    assert result.answer is None and match.split()[0] in result.error
    with pytest.raises(AudioError, match=match):
        classifier.classify_batch(wav)
    with pytest.raises(AudioError, match=match):
        classifier.stream().push(wav)


def test_limits_on_length(classifier, speech_clips, tmp_path, monkeypatch):
    """The header is checked, and the decoded length if the header is wrong."""
    path = tmp_path / "long.wav"
    soundfile.write(path, speech_clips[0].repeat(40)[: 61 * 16000], 16000)
    with pytest.raises(AudioError, match="longer than 60 s"):
        classifier.classify_file(path)
    with pytest.raises(AudioError, match="longer than 5 s"):
        classifier.classify_file(path, longest=5.0)
    [result] = classifier.classify_files([path], longest=50.0)
    assert "longer than 50 s" in result.error

    # A header that claims less than there is: answered by windows
    [expected] = classifier.classify_files([path])

    @contextmanager
    def forged(path, longest):
        yield SimpleNamespace(frames=16000, samplerate=16000)

    monkeypatch.setattr(files_module, "open_audio", forged)
    [result] = classifier.classify_files([path])
    assert torch.equal(result.log_posteriors, expected.log_posteriors)
    [result] = classifier.classify_files([path], longest=60.5)
    assert "longer than 60.5 s" in result.error


def test_silence_is_no_emotion(classifier, mixed_folder):
    path = next(mixed_folder.rglob("silence.wav"))
    with pytest.raises(AudioError, match="no speech in .*silence.wav: silence"):
        classifier.classify_file(path)
    assert classifier.classify_file(path, speech_only=False)[3]


def test_batches_are_small_and_of_like_length():
    lengths = {k: 1.0 + (k * 7919 % 100) for k in range(200)}
    batches = list(_batches(lengths))
    assert sorted(k for batch in batches for k in batch) == list(range(200))
    for batch in batches:
        longest = max(lengths[k] for k in batch)
        assert len(batch) <= 8
        assert len(batch) == 1 or len(batch) * longest <= 120
    padded = sum(len(b) * max(lengths[k] for k in b) for b in batches)
    assert padded < 1.05 * sum(lengths.values())


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio files in"):
        find_audio(tmp_path)
    with pytest.raises(FileNotFoundError, match="no audio files were given"):
        find_audio([])


def test_every_ending_is_found(tmp_path):
    names = (
        "a.oga b.caf c.w64 d.rf64 e.aiff f.au g.sph h.snd i.AIFC j.Wav k.m4a"
    )
    for name in names.split():
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    found = find_audio(tmp_path)
    assert [path.name for path in found] == names.split()
    assert found.summary == "passed over: 1 not audio (such as notes.txt)"


HIDDEN = [
    ".hidden.wav",
    "._speech.wav",
    ".Trash/a.wav",
    ".Trash-1000/files/a.wav",
    "$RECYCLE.BIN/a.wav",
    "b/@eaDir/a.wav",
    "__MACOSX/b/a.wav",
    "lost+found/a.wav",
    ".git/c/d/a.wav",
]


def test_hidden_files_and_trash(tmp_path, speech_files):
    for name in ("seen.flac", "b/c/seen.flac", "notes.txt", *HIDDEN):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(speech_files[0])
    found = find_audio(tmp_path / "data")
    assert [p.name for p in found] == ["seen.flac"] * 2
    assert set(found.passed_over) == {"hidden", "not audio"}
    hidden = {str(p) for p in found.passed_over["hidden"]}
    assert hidden == {str(tmp_path / "data" / name) for name in HIDDEN}
    # Who names a hidden folder or file means it
    assert len(find_audio(tmp_path / "data" / ".Trash")) == 1
    assert len(find_audio([tmp_path / "data" / ".hidden.wav"])) == 1


def test_links_are_followed_and_circles_are_not(tmp_path, speech_files):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(speech_files[0].parent)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(find_audio(tmp_path)) == len(speech_files)


def test_a_folder_says_what_was_passed_over(
    classifier, speech_files, tmp_path, monkeypatch
):
    (tmp_path / "a.flac").symlink_to(speech_files[0])
    for name in ("b.m4a", "c.mp4", "d.pdf", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(folders, "has_ffmpeg", lambda: False)
    results = classifier.classify_files(tmp_path)
    assert isinstance(results, list) and len(results) == 1
    counts = {k: len(v) for k, v in results.passed_over.items()}
    remedy = 'that require pip install "speechbrain-dslstm[media]"'
    assert counts == {remedy: 2, "not audio": 2}
    (tmp_path / "a.flac").unlink()
    with pytest.raises(FileNotFoundError, match=r"no audio.*2 not audio"):
        find_audio(tmp_path)


def test_a_folder_that_cannot_be_listed(speech_files):
    """Root becomes nobody to test it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copy(speech_files[0], name)
        closed = Path(name, "closed")
        closed.mkdir(mode=0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            found = find_audio(name)
        finally:
            os.seteuid(user)
        assert found.passed_over == {"unreadable folders": [closed]}
        closed.chmod(0o700)


def test_progress(classifier, speech_files, capsys):
    classifier.classify_files(speech_files[:3], progress=True)
    assert "3/3" in capsys.readouterr().err
    classifier.classify_files(speech_files[:3])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hop", [None, 1.5, 3.0])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_long_is_each_window_by_itself(
    hop, rate, classifier, speech_clips, tmp_path
):
    """Segments have no gaps, and the answer of their piece of the file."""
    path = tmp_path / "long.flac"
    samples = torch.cat(speech_clips[:12])
    if rate != 16000:
        import soxr

        samples = torch.from_numpy(soxr.resample(samples.numpy(), 16000, rate))
    stereo = np.stack([samples.numpy()] * 2, axis=1)
    soundfile.write(path, stereo, rate)
    whole = load_audio(path)
    found = list(classifier.classify_long(path, window=3.0, hop=hop))
    assert found[0].start == 0 and len(found) > 8
    assert found[-1].end == pytest.approx(len(whole) / 16000, abs=1e-3)
    step = hop or 3.0
    for k, segment in enumerate(found):
        assert isinstance(segment, Segment)
        assert segment.start == pytest.approx(k * step)
        if segment.reason is None:
            piece = whole[
                round(segment.start * 16000) : round(segment.end * 16000)
            ]
            expected, _, _, label = classifier.classify_batch(piece)
            torch.testing.assert_close(
                segment.log_posteriors, expected[0], atol=1e-4, rtol=0
            )
            assert segment.label == label[0]
    for before, after in zip(found[:-1], found[1:], strict=True):
        assert after.start <= before.end < after.end


@pytest.mark.parametrize("length", [1, 99, 100, 101, 150, 199, 200, 201])
@pytest.mark.parametrize("step", [30, 50, 100])
@pytest.mark.parametrize("block", [7, 1000])
def testcut_windows_cover_everything(length, step, block):
    wav = torch.arange(float(length))
    windows = list(cut_windows(wav.split(block), 100, step))
    assert [start for start, _ in windows] == [
        k * step for k in range(len(windows))
    ]
    covered = torch.zeros(length)
    for start, window in windows:
        torch.testing.assert_close(
            window, wav[start : start + 100], atol=0, rtol=0
        )
        covered[start : start + len(window)] += 1
    assert covered.min() >= 1
    # None lies inside the one before
    ends = [start + len(window) for start, window in windows]
    assert ends == sorted(set(ends))


def test_pauses_have_a_reason(classifier, speech_clips, tmp_path):
    path = tmp_path / "pause.wav"
    pause = torch.zeros(6 * 16000)
    speech = torch.cat(speech_clips[:5])[: 6 * 16000]
    soundfile.write(path, torch.cat([speech, pause, speech]).numpy(), 16000)
    found = list(classifier.classify_long(path))
    assert [segment.reason for segment in found] == [None, "silence", None]
    assert found[1].label is None and found[1].log_posteriors is None
    every = list(classifier.classify_long(path, speech_only=False))
    assert all(segment.label for segment in every)
    unsure = list(classifier.classify_long(path, unknown_below=1.0))
    assert unsure[0].label == "unknown"


def test_long_errors(classifier, tmp_path, speech_files):
    with pytest.raises(ValueError, match="0 < hop <= window"):
        classifier.classify_long(speech_files[0], window=1.0, hop=2.0)
    with pytest.raises(ValueError, match="0 < hop <= window"):
        classifier.classify_long(speech_files[0], window=0.0)
    with pytest.raises(ValueError, match="unknown_below"):
        classifier.classify_long(speech_files[0], unknown_below=-1)
    with pytest.raises(AudioError, match="gone.wav"):
        list(classifier.classify_long(tmp_path / "gone.wav"))


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.pretrained import make_label_encoder
labels = make_label_encoder(["a", "b"])
classifier = EmotionClassifier.from_model(
    DualLevelClassifier(2, p=0.0), labels, 16000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
list(classifier.classify_long(sys.argv[1]))
before = peak()
found = list(classifier.classify_long(sys.argv[2]))
print(before, peak(), len(found))
"""


def test_memory_does_not_grow_with_length(tmp_path, speech_clips):
    """Twenty minutes, 77 MB of samples, take no more memory than one minute."""
    paths = [tmp_path / "one.flac", tmp_path / "twenty.flac"]
    minute = torch.cat(speech_clips[:25])[: 60 * 16000].numpy()
    for path, minutes in zip(paths, (1, 20), strict=True):
        with soundfile.SoundFile(path, "w", 16000, 1) as file:
            for _ in range(minutes):
                file.write(minute)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=Path(files_module.__file__).parents[1],
        check=True,
    )
    before, after, segments = map(int, done.stdout.split())
    assert segments == math.ceil(20 * len(minute) / 96000)
    assert after - before < 40
