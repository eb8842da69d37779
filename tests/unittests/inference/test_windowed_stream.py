"""A windowed stream gives the offline answer of its last seconds, and follows."""

import math

import pytest
import torch
from moods import join_clips
from nightly import at_night

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.inference import (
    EmotionStream,
    WindowedStream,
    load_safe,
)
from speechbrain_dslstm.pretrained import make_label_encoder


@pytest.fixture(scope="module")
def shipped():
    return load_safe("pretrained/emotion-dslstm-emodb")


@pytest.fixture(scope="module")
def centred(small_model):
    """A model that needs the whole utterance: a mean, and two directions."""
    model = small_model(center=True, bidirectional=True)
    labels = make_label_encoder(["sadness", "anger", "neutral"])
    return EmotionClassifier.from_model(model, labels, 16000, 1.5)


@pytest.mark.parametrize("sizes", [[700], [1600, 1], [9000, 40000], [200000]])
def test_the_answer_is_that_of_the_last_seconds(sizes, centred, speech_clips):
    """The chunks have no influence on it, and neither has what came before."""
    wav = torch.cat(speech_clips[:5])[: 16000 * 8 + 5000]
    stream = centred.stream(window=2.5)
    start = k = 0
    while start < len(wav):
        size = sizes[k % len(sizes)]
        running = stream.push(wav[start : start + size])
        start, k = start + size, k + 1
        end = min(start, len(wav)) // 8000 * 8000
        if not end:
            assert running is None
        elif k % 5 == 1:
            expected = centred.classify_batch(wav[max(0, end - 40000) : end])
            torch.testing.assert_close(
                running, expected.out_prob[0], atol=1e-5, rtol=0
            )
    expected = centred.classify_batch(wav[-40000:]).out_prob[0]
    torch.testing.assert_close(stream.finish(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream.finish(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="finished"):
        stream.push(wav[:5])


def test_a_decay_averages_over_time(centred, speech_clips):
    """Weights fall to 1/e in one time constant; the last part of a hop counts less."""
    wav = torch.cat(speech_clips[:4])[: 16000 * 5 + 4000]
    stream = centred.stream(window=1.5, decay=0.7, speech_only=False)
    for chunk in wav.split(3000):
        stream.push(chunk)
    found = stream.finish().exp()
    ends = [*range(8000, len(wav), 8000), len(wav)]
    total = weights = 0
    for last, end in zip([0, *ends], ends, strict=False):
        answer = centred.classify_batch(wav[max(0, end - 24000) : end])
        weight = (end - last) * math.exp(-(len(wav) - end) / 16000 / 0.7)
        total = total + weight * answer.out_prob[0].exp()
        weights += weight
    torch.testing.assert_close(found, total / weights, atol=1e-5, rtol=0)
    plain = centred.classify_batch(wav[-24000:]).out_prob[0].exp()
    assert (found - plain).abs().max() > 1e-3


def test_memory_is_that_of_a_window(centred, speech_clips):
    stream = centred.stream(window=2.0, decay=3.0)
    for wav in speech_clips[:8]:
        stream.push(wav)
        assert stream.state_size() <= 32000 + 3
        assert stream._held.untyped_storage().nbytes() <= 4 * (32000 + 8000)


def test_silence_has_a_reason_and_no_weight(shipped, speech_clips):
    """The model would call silence sad."""
    stream = shipped.stream(window=2.0, decay=2.0)
    assert stream.push(torch.zeros(16000)) is None
    assert stream.reason == "silence" and stream.dimensions() == {}
    spoken = stream.push(torch.cat(speech_clips[:2])[:48000])
    assert stream.reason is None
    # Part of the window is speech, until it is only silence
    for _ in range(400):
        later = stream.push(torch.zeros(80000))
    assert stream.reason == "silence" and not later.isnan().any()
    assert (later.exp().sum() - 1).abs() < 1e-5
    again = stream.push(speech_clips[3][:48000])
    assert stream.reason is None and (again - spoken).abs().max() > 1e-3
    silent = shipped.stream(window=2.0)
    silent.push(torch.zeros(9000))
    assert silent.finish() is None
    every = shipped.stream(window=2.0, speech_only=False)
    assert every.push(torch.zeros(16000)) is not None


@pytest.mark.parametrize(
    ("speaker", "first", "second"),
    [
        ("08", "W", "T"),
        ("13", "T", "W"),
        ("03", "N", "W"),
        *(
            at_night(s, a, b)
            for s in ("09", "11", "14")
            for a, b in ("WT", "TW")
        ),
    ],
)
def test_a_change_of_mood(speaker, first, second, shipped, emodb_folder):
    """After 60 s of one emotion the other is found within 6 s, and stays."""
    names = {"W": "anger", "T": "sadness", "N": "neutral"}
    before = join_clips(emodb_folder, speaker, first, 60)
    after = join_clips(emodb_folder, speaker, second, 30)
    # A hop of a second halves the time that this takes
    stream = shipped.stream(window=4.0, decay=1.0, hop=1.0)
    labels = [
        shipped.labels[int(stream.push(chunk).argmax())]
        for chunk in torch.cat([before, after]).split(16000)
    ]
    assert labels[6:60].count(names[first]) > 48
    assert labels[66:] == [names[second]] * 24
    whole = shipped.stream()
    if speaker == "08":
        whole.push(before)
        whole.push(after)
        assert shipped.labels[int(whole.finish().argmax())] == names[first]


def test_the_default_is_a_whole_utterance(shipped, centred, speech_clips):
    """A centring model subtracts the running mean unless the caller chooses."""
    wav = speech_clips[0]
    stream = shipped.stream()
    assert isinstance(stream, EmotionStream)
    stream.push(wav)
    offline = shipped.with_normalization("running").classify_batch(wav)
    torch.testing.assert_close(
        stream.finish(), offline.out_prob[0], atol=1e-5, rtol=0
    )
    alone = shipped.stream(decay=2.0)
    assert isinstance(alone, WindowedStream) and alone.size == 4 * 16000
    with pytest.raises(ValueError, match=r'with_normalization\("running"\)'):
        shipped.stream("running", window=4.0)
    with pytest.raises(ValueError, match="backwards"):
        centred.stream()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": math.inf}, "above 0 as window, got inf"),
        ({"window": math.nan}, "as window, got nan"),
        ({"window": 0.0}, "as window, got 0.0"),
        ({"window": 0.1}, "a window of 0.2 to 60 seconds, got 0.1"),
        ({"window": 61.0}, "got 61"),
        ({"decay": 0.0}, "as decay"),
        ({"decay": math.nan}, "as decay"),
        ({"window": 1.0, "hop": -1.0}, "as hop"),
    ],
)
def test_seconds_that_are_none(options, match, shipped):
    with pytest.raises(ValueError, match=match):
        shipped.stream(**options)


@pytest.mark.parametrize(
    ("chunk", "match"),
    [
        (torch.zeros(1, 5), r"floats \[samples\], got \[1, 5\]"),
        (torch.zeros(5, dtype=torch.int16), "int16"),
        (torch.tensor([0.0, math.inf]), "infinite"),
    ],
)
def test_a_refused_chunk_changes_nothing(chunk, match, shipped):
    stream = shipped.stream(window=1.0)
    with pytest.raises(ValueError, match=match):
        stream.push(chunk)
    with pytest.raises(ValueError, match="received no samples"):
        stream.finish()
