"""The features against openSMILE and librosa, and what padding must not do."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import soundfile
import torch
from hypothesis import given, settings, strategies as st
from real_speech import clips_in

from speechbrain_dslstm.features import (
    MFCC39,
    LogMelSpectrogram,
    extractor as extractor_module,
)

TESTS = Path(__file__).parents[2]
CORPORA = ["synthetic", "emodb", "ravdess", "nemo"]
EXTRACTORS = {
    "mfcc": MFCC39(),
    "mel_x": LogMelSpectrogram(n_fft=512),
    "mel_y": LogMelSpectrogram(n_fft=1024),
}

examples = settings(max_examples=25, deadline=None)
any_extractor = pytest.mark.parametrize("name", EXTRACTORS)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, so that sums are added in the same order every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def smile():
    """Our configuration's features, as openSMILE computes them."""
    opensmile = pytest.importorskip("opensmile")
    extractor = opensmile.Smile(
        str(TESTS / "golden" / "mfcc12_e_d_a.conf"), feature_level="lld"
    )

    def compute(samples):
        values = extractor.process_signal(samples.numpy(), 16000).values
        return torch.tensor(values)

    return compute


@pytest.fixture(scope="module", params=CORPORA)
def clips(request):
    """Eight clips spread over one corpus, as float32 samples."""
    from speechbrain.dataio.dataio import read_audio

    if request.param == "synthetic":
        files = request.getfixturevalue("speech_files")
    else:
        folder = request.getfixturevalue(f"{request.param}_folder")
        files = clips_in(folder)
    return [read_audio(str(f)) for f in files[:: math.ceil(len(files) / 8)]]


def speech_like(samples, seed=0):
    """16-bit samples with a spectrum that falls as that of speech does."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator).cumsum(0)
    noise = noise - noise.mean()
    noise = 0.5 * noise / noise.abs().max().clamp(min=1e-3)
    return (noise * 32768).round() / 32768


def batched(extractor, wavs, lengths=None):
    """The features of one utterance that has no padding."""
    return extractor(wavs.unsqueeze(0), lengths)[0]


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# Against strangers


def test_mfcc_equals_opensmile_on_speech(smile, clips):
    for samples in clips:
        assert_near(batched(EXTRACTORS["mfcc"], samples), smile(samples), 1e-3)


@pytest.mark.parametrize(
    "case", ["silence", "gaps", "one bit", "clicks", "constant", "clipped"]
)
def test_mfcc_equals_opensmile_at_the_floors(smile, case):
    samples = speech_like(16000)
    if case == "silence":
        samples = torch.zeros(8000)
    elif case == "gaps":
        samples[3000:7000] = 0
        samples[9000:9500] = 0
    elif case == "one bit":
        samples = samples.sign() / 32768
    elif case == "clicks":
        samples = torch.zeros(8000)
        samples[::700] = 1 / 32768
    elif case == "constant":
        samples = torch.full((8000,), 0.5)
    else:
        samples = (50 * samples).clamp(-1, 32767 / 32768)
    assert_near(batched(EXTRACTORS["mfcc"], samples), smile(samples), 1e-3)


@pytest.mark.parametrize("frames", [4, 5, 7])
def test_mfcc_equals_opensmile_on_short_clips(smile, frames):
    # On fewer than 4 frames openSMILE's deltas take zeros for later frames
    samples = speech_like(400 + 160 * (frames - 1) + 159)
    expected = smile(samples)
    assert expected.shape == (frames, 39)
    assert_near(batched(EXTRACTORS["mfcc"], samples), expected, 1e-3)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_mfcc_statics_equal_opensmile_on_shorter_clips(smile, frames):
    samples = speech_like(400 + 160 * (frames - 1))
    ours = batched(EXTRACTORS["mfcc"], samples)
    assert_near(ours[:, :13], smile(samples)[:, :13], 1e-3)


def test_mfcc_deltas_of_one_frame_are_zero():
    feats = batched(EXTRACTORS["mfcc"], speech_like(300))
    assert feats.shape == (1, 39)
    assert feats[:, :13].abs().min() > 0
    assert feats[:, 13:].abs().max() == 0


def librosa_log_mel(samples, n_fft, scale=1.0):
    """librosa's own answer in dB."""
    librosa = pytest.importorskip("librosa")
    power = librosa.feature.melspectrogram(
        y=scale * samples.numpy(),
        sr=16000,
        n_fft=n_fft,
        hop_length=n_fft // 2,
        n_mels=n_fft // 4,
    )
    return 10 * torch.from_numpy(power.T).clamp(min=1e-10).log10()


@pytest.mark.parametrize("n_fft", [512, 1024])
@pytest.mark.parametrize("scale", [1.0, 32768.0])
def test_mel_equals_librosa_on_speech(clips, n_fft, scale):
    extractor = LogMelSpectrogram(n_fft=n_fft, scale=scale)
    for samples in clips:
        ours = batched(extractor, samples)
        assert_near(ours, librosa_log_mel(samples, n_fft, scale), 1e-4)


@pytest.mark.parametrize("n_fft", [512, 1024])
@pytest.mark.parametrize("level", [0.0, 1 / 32768, 1e-4, 1e-6])
def test_mel_equals_librosa_near_the_floor(n_fft, level):
    samples = level * speech_like(6000)
    samples[2000:5000] = 0
    ours = batched(LogMelSpectrogram(n_fft=n_fft), samples)
    expected = librosa_log_mel(samples, n_fft)
    assert (expected == -100).any()
    assert_near(ours, expected, 1e-4)


@pytest.mark.filterwarnings("ignore:n_fft=512 is too large")
@pytest.mark.parametrize("samples", [1, 255, 256, 700])
def test_mel_equals_librosa_on_short_clips(samples):
    samples = speech_like(samples) + 0.1
    ours = batched(EXTRACTORS["mel_x"], samples)
    assert_near(ours, librosa_log_mel(samples, 512), 1e-4)


# Frames and padding


@any_extractor
@given(samples=st.integers(1, 4000))
@examples
def test_num_frames_is_what_comes_out(name, samples):
    extractor = EXTRACTORS[name]
    frames = extractor.num_frames(samples)
    feats = extractor(torch.zeros(2, samples))
    assert type(frames) is int
    assert feats.shape == (2, frames, extractor.output_size)
    assert torch.equal(
        extractor.num_frames(torch.tensor([samples, 1])),
        torch.tensor([frames, 1]),
    )


@any_extractor
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    extra=st.integers(0, 1500),
    garbage=st.sampled_from([0.0, 7.0, math.nan, math.inf]),
)
@examples
def test_padding_changes_nothing(name, lengths, extra, garbage):
    extractor = EXTRACTORS[name]
    size = max(lengths) + extra
    wavs = torch.full((len(lengths), size), garbage)
    for seed, (row, n) in enumerate(zip(wavs, lengths, strict=True)):
        row[:n] = speech_like(n, seed)
    counts = torch.tensor(lengths)
    together = extractor(wavs, counts)
    assert torch.equal(together, extractor(wavs, counts / size))
    assert together.shape[1] == extractor.num_frames(size)
    for row, feats, n in zip(wavs, together, lengths, strict=True):
        frames = extractor.num_frames(n)
        assert_near(feats[:frames], batched(extractor, row[:n]), 1e-5)
        assert not feats[frames:].any()


@any_extractor
@given(order=st.permutations(range(4)))
@examples
def test_batch_order_changes_nothing(name, order):
    extractor = EXTRACTORS[name]
    wavs = torch.stack([speech_like(2500, seed) for seed in range(4)])
    lengths = torch.tensor([2500, 1900, 700, 30])
    order = torch.tensor(order)
    feats = extractor(wavs, lengths)[order]
    assert_near(extractor(wavs[order], lengths[order]), feats, 1e-5)


# Numbers


@any_extractor
@pytest.mark.parametrize("samples", [1, 399, 3000])
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-4, 1.0])
def test_values_and_gradients_are_finite(name, samples, level):
    wavs = (level * speech_like(samples)).unsqueeze(0).requires_grad_()
    feats = EXTRACTORS[name](wavs)
    feats.sum().backward()
    assert feats.isfinite().all()
    assert wavs.grad.isfinite().all()


@any_extractor
def test_no_gradient_into_the_padding(name):
    wavs = torch.stack([speech_like(2000), speech_like(2000, 1)])
    wavs[1, 900:] = math.nan
    wavs.requires_grad_()
    EXTRACTORS[name](wavs, torch.tensor([2000, 900])).sum().backward()
    assert wavs.grad.isfinite().all()
    assert wavs.grad[0, 1000:].any()
    assert not wavs.grad[1, 900:].any()


@pytest.mark.parametrize(
    "extractor",
    [
        MFCC39(
            win_length=16, hop_length=8, n_fft=16, n_mels=5, n_mfcc=3, lifter=4
        ),
        LogMelSpectrogram(n_fft=16),
    ],
    ids=["mfcc", "mel"],
)
def test_gradients_are_right(extractor):
    wavs = torch.stack([speech_like(40), speech_like(40, 1)]).double()
    lengths = torch.tensor([40, 27])
    assert torch.autograd.gradcheck(
        lambda wavs: extractor.double()(wavs, lengths),
        wavs.requires_grad_(),
        eps=1e-7,
        atol=1e-3,
        rtol=1e-4,
    )


@pytest.mark.parametrize("make", [MFCC39, LogMelSpectrogram])
def test_float64_and_autocast(make):
    wavs = speech_like(4000).unsqueeze(0)
    single, double = make(), make().double()
    expected = single(wavs)
    assert expected.dtype == torch.float32
    assert double(wavs.double()).dtype == torch.float64
    assert_near(double(wavs.double()).float(), expected, 3e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(single(wavs), expected)
    for dtype in (torch.float16, torch.bfloat16):
        low = wavs.to(dtype)
        assert torch.equal(single(low), single(low.float()))


@any_extractor
def test_fast_products_stay_exact(name):
    """Where torch may round the products, they are made in float64."""
    wavs = torch.stack([speech_like(4000), speech_like(4000, 1)])
    expected = EXTRACTORS[name](wavs)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high"):
            torch.set_float32_matmul_precision(precision)
            assert_near(EXTRACTORS[name](wavs), expected, 3e-5)
    finally:
        torch.set_float32_matmul_precision(before)


@any_extractor
@pytest.mark.parametrize("pieces", [1, 3, 12, 13, 14])
def test_pieces_change_nothing(name, pieces, monkeypatch):
    wavs = speech_like(6600).unsqueeze(0)
    expected = EXTRACTORS[name](wavs)
    monkeypatch.setattr(extractor_module, "FRAMES_AT_ONCE", pieces)
    assert_near(EXTRACTORS[name](wavs), expected, 1e-5)


@any_extractor
def test_batch_at_once_changes_nothing(name, monkeypatch):
    """What other devices do, which need no small pieces."""
    wavs = torch.stack([speech_like(5000, seed) for seed in range(3)])
    wavs[1, 3000:] = math.nan
    lengths = torch.tensor([5000, 3000, 100])
    expected = EXTRACTORS[name](wavs, lengths)
    monkeypatch.setattr(extractor_module, "_on_cpu", lambda x: False)
    assert_near(EXTRACTORS[name](wavs, lengths), expected, 3e-5)


@any_extractor
def test_settings_make_the_same_extractor(name):
    extractor = EXTRACTORS[name]
    again = type(extractor)(**extractor.get_config())
    assert again.get_config() == extractor.get_config()
    wavs = speech_like(2000).unsqueeze(0)
    assert torch.equal(again(wavs), extractor(wavs))


def test_scale_shifts_the_level():
    wavs = speech_like(4000).unsqueeze(0)
    level = LogMelSpectrogram()(wavs)
    shifted = LogMelSpectrogram(scale=32768.0, floor=1e-10 * 2.0**30)(wavs)
    shift = 20 * math.log10(32768)
    assert_near(shifted, level + shift, 1e-4)


@any_extractor
def test_nothing_is_saved_or_trained(name):
    assert not EXTRACTORS[name].state_dict()
    assert not list(EXTRACTORS[name].parameters())


# Bad input


@any_extractor
@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        (torch.zeros(8), r"\[batch, samples\], 2 dimensions, got 1: \[8\]"),
        (torch.zeros(1, 2, 8), r"2 dimensions, got 3: \[1, 2, 8\]"),
        (torch.zeros(2, 0), "at least 1 sample, got 0"),
        (
            torch.zeros(1, 8, dtype=torch.int16),
            r"floats in \[-1, 1\], got torch.int16",
        ),
    ],
)
def test_bad_waveforms(name, wavs, message):
    with pytest.raises(ValueError, match=message):
        EXTRACTORS[name](wavs)


@any_extractor
def test_bad_lengths(name):
    extractor = EXTRACTORS[name]
    with pytest.raises(ValueError, match=r"1\.\.800, got \[801, 5\]"):
        extractor(torch.zeros(2, 800), torch.tensor([801, 5]))
    with pytest.raises(ValueError, match="expected 2 lengths"):
        extractor(torch.zeros(2, 800), torch.ones(3))
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        extractor.num_frames(0)
    with pytest.raises(ValueError, match="at least 1 sample, got -3"):
        extractor.num_frames(torch.tensor([5, -3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"win_length": 600}, "at most n_fft, got 600 > 512"),
        ({"sample_rate": 8000}, r"4000\.0 Hz .* f_max 8000\.0"),
        ({"f_min": 9000.0}, r"f_min 9000\.0 and f_max 8000\.0"),
        ({"n_mfcc": 26}, "below n_mels, got 26 >= 26"),
        ({"hop_length": 0}, "hop_length must be at least 1, got 0"),
        ({"lifter": 0}, "lifter must be at least 1, got 0"),
    ],
)
def test_bad_mfcc_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MFCC39(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_fft": 511}, "even, got 511"),
        ({"n_fft": 2}, "n_mels must be at least 1, got 0"),
        ({"hop_length": -1}, "hop_length must be at least 1, got -1"),
        ({"scale": 0.0}, "above 0, got 0.0 and 1e-10"),
        ({"floor": 0.0}, "above 0, got 1.0 and 0.0"),
    ],
)
def test_bad_mel_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogMelSpectrogram(**arguments)


# Configuration


def test_yaml_states_the_defaults():
    from hyperpyyaml import load_hyperpyyaml

    with (TESTS.parent / "hparams" / "features.yaml").open() as file:
        hparams = load_hyperpyyaml(file)
    wavs = speech_like(4000).unsqueeze(0)
    for name, extractor in EXTRACTORS.items():
        assert torch.equal(hparams[name](wavs), extractor(wavs))


def test_yaml_takes_the_sizes_of_the_papers_figure():
    from hyperpyyaml import load_hyperpyyaml

    with (TESTS.parent / "hparams" / "features.yaml").open() as file:
        hparams = load_hyperpyyaml(file, {"n_fft_x": 256, "n_fft_y": 512})
    wavs = torch.zeros(1, 16000)
    assert hparams["mel_x"](wavs).shape == (1, 126, 64)
    assert hparams["mel_y"](wavs).shape == (1, 63, 128)


def cepstra(magnitude):
    """The definition from one frame's magnitudes on, in float64."""
    mel = 1127 * np.log1p(np.arange(257) * 16000 / 512 / 700)
    edges = np.linspace(0, 1127 * np.log1p(8000 / 700), 28)
    bands = [
        np.interp(mel, edges[i : i + 3], [0, 1, 0]) @ magnitude
        for i in range(26)
    ]
    values = scipy.fft.dct(np.log(np.maximum(bands, 1)), norm="ortho")
    lifter = 1 + 11 * np.sin(np.pi * np.arange(1, 13) / 22)
    return torch.from_numpy(values[1:13] * lifter)


@pytest.fixture
def rounding_clip(ravdess_folder):
    """The clip of the one frame (77) that openSMILE has elsewhere."""
    path = ravdess_folder / "03-01-08-01-01-02-16.flac"
    samples = soundfile.read(path, dtype="int16")[0]
    return torch.from_numpy(samples / 32768.0).float()


def test_mfcc_where_opensmile_rounds_is_the_definition(smile, rounding_clip):
    """The one frame of 1.0 million with a difference above 1e-3."""
    feats = batched(EXTRACTORS["mfcc"], rounding_clip)
    difference = (feats - smile(rounding_clip)).abs().amax(dim=1)
    assert difference[77] < 1.5e-3
    difference[77] = 0
    assert difference.max() < 1e-3
    frame = 32767.0 * rounding_clip[77 * 160 :][:400].numpy().astype(np.float64)
    frame = np.hamming(400) * (frame - 0.97 * np.append(frame[0], frame[:-1]))
    exact = cepstra(np.abs(scipy.fft.rfft(frame, 512)))
    assert_near(feats[77, :12].double(), exact, 3e-5)


def test_what_opensmile_rounds_is_the_transform(rounding_clip, tmp_path):
    """An exact one of its own frame is off as ours is, the rest is the same."""
    opensmile = pytest.importorskip("opensmile")
    text = (TESTS / "golden" / "mfcc12_e_d_a.conf").read_text("utf-8")

    def level(name):
        path = tmp_path / f"{name}.conf"
        path.write_text(text.replace("basics;deltas;accelerations", name))
        smile = opensmile.Smile(str(path), feature_level="lld")
        return smile.process_signal(rounding_clip.numpy(), 16000).values[77]

    spectrum = scipy.fft.rfft(level("windowed").astype(np.float64), 512)
    theirs = torch.tensor(level("basics")[:12]).double()
    exact = cepstra(32767.0 * np.abs(spectrum))
    assert (exact - theirs).abs().max() > 1e-3
    rounded = cepstra(32767.0 * level("magnitudes").astype(np.float64))
    assert_near(rounded, theirs, 1e-4)
