"""A small dual-level classifier for the tests of inference."""

import pytest
import torch
from real_speech import clips_in

from speechbrain_dslstm import DSLSTM, DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.layers import LocalFeatureCNN
from speechbrain_dslstm.models import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.pretrained import make_label_encoder

# Neither in the order of the alphabet nor of length
LABELS = ["sadness", "anger", "neutral"]


def build_small(p=0.5, pooling="mean", **options):
    """A dual-level model of few units; ``options`` are those of DSLSTM."""
    cnn_x = LocalFeatureCNN(128, channels=[4, 2], kernel_size=[2, 4])
    cnn_y = LocalFeatureCNN(256, channels=[4, 2], kernel_size=[4, 2])
    sizes = cnn_x.output_size, cnn_y.output_size
    ds_lstm = DSLSTM(*sizes, **{"hidden_size": 8, "num_layers": 2, **options})
    branch = SpectrogramBranch(
        3, cnn_x, cnn_y, ds_lstm=ds_lstm, pooling=pooling
    )
    mfcc = MFCCBranch(3, hidden_size=8, pooling=pooling)
    return DualLevelClassifier(3, spectrogram=branch, mfcc=mfcc, p=p)


@pytest.fixture(scope="session")
def small_model(speech_clips):
    """Build a model with random weights and the statistics of speech."""

    def make(center=False, **options):
        torch.manual_seed(0)
        model = build_small(**options)
        for clip in speech_clips[:3]:
            model.update_normalization(clip.unsqueeze(0))
        for stream in model.streams.values():
            stream.normalization.center_utterances = center
        # So that the answers differ from clip to clip
        for branch in model.branches.values():
            branch.head.weight.data *= 20
        # Batch norm with statistics of its own
        model.train()
        model(torch.stack([clip[:20000] for clip in speech_clips[:4]]))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def speech_clips(speech_files):
    """Waveforms of the synthetic files."""
    return [load_audio(path) for path in speech_files]


@pytest.fixture(scope="session")
def emodb_clips(emodb_folder):
    """Waveforms of every tenth clip of EMO-DB."""
    return [load_audio(path) for path in clips_in(emodb_folder)[::10]]


@pytest.fixture(params=["speech_clips", "emodb_clips"])
def clips_of_both(request):
    """Synthetic waveforms, then real ones."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def classifier(small_model):
    """A classifier of a small dual-level model."""
    return EmotionClassifier.from_model(
        small_model(), make_label_encoder(LABELS), 16000, temperature=1.5
    )
