"""The features against librosa, openSMILE and torchaudio.

All three features of 100 clips of 4 s, each way in turns; nothing is timed
if the numbers differ. librosa and openSMILE go from clip to
clip, as they must; torchaudio's transforms (two mel-spectrograms in dB, MFCCs
with deltas) have the same sizes, and the time of whichever is faster for them,
clip by clip or all in one batch.
"""

import functools
from pathlib import Path

import librosa
import opensmile
import torch
from timing import Row, interleave
from torchaudio import transforms

from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram

PARITY = ["features/test_extractors.py"]
TESTS = Path(__file__).resolve().parents[1]
CLIPS, RATE, SECONDS = 100, 16000, 4
# Largest ratio that is wanted, against the fastest way of each stranger
TARGETS = {"librosa, openSMILE": 1 / 15, "torchaudio": 1.0}


def make_clips():
    """Make 16-bit noise with a spectrum that falls as that of speech does.

    Returns
    -------
    torch.Tensor, [CLIPS, samples]
        Waveforms.
    """
    generator = torch.Generator().manual_seed(0)
    wavs = torch.randn(CLIPS, RATE * SECONDS, generator=generator).cumsum(1)
    wavs = wavs - wavs.mean(dim=1, keepdim=True)
    wavs = 0.5 * wavs / wavs.abs().amax(dim=1, keepdim=True)
    return (wavs * 32768).round() / 32768


def our_way():
    """Make ours: a function of a batch.

    Returns
    -------
    callable
        [batch, samples] -> three features, [batch, frames, size].
    """
    extractors = [MFCC39(), LogMelSpectrogram(512), LogMelSpectrogram(1024)]
    return lambda wavs: [extractor(wavs) for extractor in extractors]


def strangers_way():
    """Make that of openSMILE and librosa: a function of one clip.

    Returns
    -------
    callable
        [samples] -> three features, [frames, size].
    """
    smile = opensmile.Smile(
        str(TESTS / "golden" / "mfcc12_e_d_a.conf"), feature_level="lld"
    )

    def call(wav):
        wav = wav.numpy()
        feats = [torch.tensor(smile.process_signal(wav, RATE).values)]
        for n_fft in (512, 1024):
            power = librosa.feature.melspectrogram(
                y=wav,
                sr=RATE,
                n_fft=n_fft,
                hop_length=n_fft // 2,
                n_mels=n_fft // 4,
            )
            level = librosa.power_to_db(power, top_db=None)
            feats.append(torch.from_numpy(level.T))
        return feats

    return call


def torchaudios_way():
    """Make torchaudio's: a function of a batch.

    Returns
    -------
    callable
        [batch, samples] -> three features, [batch, size, frames].
    """
    mels = [
        transforms.MelSpectrogram(
            RATE,
            n_fft,
            hop_length=n_fft // 2,
            n_mels=n_fft // 4,
            pad_mode="constant",
            norm="slaney",
            mel_scale="slaney",
        )
        for n_fft in (512, 1024)
    ]
    to_db = transforms.AmplitudeToDB()
    sizes = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 26}
    mfcc = transforms.MFCC(RATE, 13, melkwargs=sizes)
    deltas = transforms.ComputeDeltas()

    def call(wavs):
        static = mfcc(wavs)
        first = deltas(static)
        both = torch.cat([static, first, deltas(first)], dim=1)
        return [both, *(to_db(mel(wavs)) for mel in mels)]

    return call


def check(ours, strangers, wavs):
    """Refuse to time what is not the same.

    Arguments
    ---------
    ours : callable
        Of a batch.
    strangers : callable
        Of one clip.
    wavs : torch.Tensor, [batch, samples]
        Waveforms.

    Raises
    ------
    AssertionError
        A value differs by more than 1e-3.
    """
    for wav, *feats in zip(wavs, *ours(wavs), strict=True):
        for one, other in zip(feats, strangers(wav), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def rows(options):
    """Time all ways in turns.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for all rows together.

    Yields
    ------
    Row
        For each way of ours against each stranger, in ms for one clip.
    """
    wavs = make_clips()
    ours, strangers, torchaudios = our_way(), strangers_way(), torchaudios_way()

    def one_by_one(way):
        for wav in wavs.split(1):
            way(wav)

    calls = {
        "librosa, openSMILE": lambda: [strangers(wav) for wav in wavs],
        "batch": lambda: ours(wavs),
        "torchaudio, batch": lambda: torchaudios(wavs),
        "clip by clip": functools.partial(one_by_one, ours),
        "torchaudio, clip by clip": functools.partial(one_by_one, torchaudios),
    }
    with torch.no_grad():
        check(ours, strangers, wavs[:10])
        medians = interleave(calls, 3 * options.seconds, least=3)
    ms = {name: median / CLIPS for name, median in medians.items()}
    ms["torchaudio"] = min(
        ms.pop("torchaudio, batch"), ms.pop("torchaudio, clip by clip")
    )
    for way in ("batch", "clip by clip"):
        for name, target in TARGETS.items():
            yield Row(
                "features",
                f"{way} against {name}",
                ms[way] / ms[name],
                target,
                {"ours": ms[way], name: ms[name]},
            )
