"""Speech passes the check of speech activity, and nothing else does."""

import math

import pytest
import torch
from real_speech import clips_in

from speechbrain_dslstm.audio import AudioError, load_audio
from speechbrain_dslstm.inference import NoSpeechError
from speechbrain_dslstm.inference.speech_activity import (
    check_speech,
    measure_activity,
)

SAMPLES = 80000


def coloured(power):
    """Make noise with a spectral density of 1 / frequency ** power."""
    spectrum = torch.fft.rfft(torch.randn(SAMPLES))
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    noise = torch.fft.irfft(spectrum / frequency ** (power / 2))
    return 0.1 * noise / noise.std()


def hum(pitch, harmonics=8):
    phase = 2 * math.pi * pitch * torch.arange(SAMPLES) / 16000
    return 0.1 * sum((k * phase).sin() / k for k in range(1, harmonics + 1))


def clicks(number):
    wav = torch.zeros(SAMPLES)
    wav[torch.randint(0, SAMPLES, (number,))] = 1.0
    return wav


NO_SPEECH = {
    "zeros": ("silence", lambda: torch.zeros(SAMPLES)),
    "offset": ("silence", lambda: torch.full((SAMPLES,), 0.5)),
    "dither": ("silence", lambda: 3e-5 * torch.randn(SAMPLES)),
    "white": ("noise", lambda: coloured(0)),
    "pink": ("noise", lambda: coloured(1)),
    "brown": ("noise", lambda: coloured(2)),
    "quiet white": ("noise", lambda: 0.02 * coloured(0)),
    "breathing": (
        "noise",
        lambda: coloured(0) * (hum(0.5, 1) * 10 + 1),
    ),
    "hum 50": ("noise", lambda: hum(50)),
    "hum 60": ("noise", lambda: hum(60)),
    "hum 120 + white": ("noise", lambda: hum(120) + 0.5 * coloured(0)),
    "hum 100 + pink": ("noise", lambda: hum(100) + coloured(1)),
    "tone": ("noise", lambda: hum(440, 1)),
    "clicks": ("noise", lambda: clicks(10)),
    "crackle": ("noise", lambda: clicks(500)),
    "short": ("too short", lambda: coloured(0)[:3000]),
    "a sample": ("too short", lambda: torch.ones(1)),
}


@pytest.mark.parametrize("name", NO_SPEECH)
@pytest.mark.parametrize("seed", range(3))
def test_no_speech(name, seed):
    torch.manual_seed(seed)
    reason, make = NO_SPEECH[name]
    wav = make()
    assert measure_activity(wav).reason == reason, measure_activity(wav)
    with pytest.raises(NoSpeechError, match=f"no speech in a.wav: {reason}"):
        check_speech(wav, where="a.wav")


@pytest.mark.parametrize("corpus", ["emodb", "ravdess", "nemo"])
def test_all_speech_is_speech(corpus, request):
    """Every third clip passes; all clips take a minute."""
    folder = request.getfixturevalue(f"{corpus}_folder")
    refused = {}
    for path in clips_in(folder)[::3]:
        reason = measure_activity(load_audio(path)).reason
        if reason:
            refused[path.name] = reason
    assert refused == {}


@pytest.mark.parametrize("gain", [0.01, 0.1, 1.0])
def test_level_and_a_little_noise_change_nothing(gain, clips_of_both):
    for wav in clips_of_both:
        wav = 0.1 * wav / wav.std()
        noise = torch.randn(len(wav)) * wav.std() / 10 ** (10 / 20)
        check_speech(gain * (wav + noise))


def test_speech_at_another_rate(clips_of_both):
    for wav in clips_of_both[:9]:
        check_speech(wav[::2], sample_rate=8000)


def test_reason_can_be_read():
    with pytest.raises(AudioError) as caught:
        check_speech(torch.zeros(16000))
    assert caught.value.reason == "silence"
    assert isinstance(caught.value, ValueError)
