"""Graphs refuse what they cannot compute, and mark what is no audio."""

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.export.stream_graph import ExportableStep
from speechbrain_dslstm.export.utterance_graph import ExportableClassifier
from speechbrain_dslstm.models import MFCCBranch


@pytest.mark.parametrize(
    ("options", "match"),
    [({"gate_norm": "batch"}, "gate_norm"), ({"bidirectional": True}, "backw")],
)
def test_what_cannot_be_exported(options, match, small_model):
    with pytest.raises(ValueError, match=match):
        ExportableClassifier(small_model(**options))


@pytest.mark.parametrize("fault", [float("nan"), -float("inf"), 1001.0])
def test_graphs_give_no_posteriors_for_what_is_no_audio(
    fault, small_model, speech_clips
):
    """Only the spoiled item is NaN, and its stream stays NaN."""
    model = small_model()
    wavs = torch.stack([clip[:20480] for clip in speech_clips[:2]])
    wavs[1, 5] = fault
    counts = torch.tensor([20480, 20480])
    step = ExportableStep(model)
    states = step.initial_state(batch=2)
    with torch.no_grad():
        whole = ExportableClassifier(model)(wavs, counts)
        for t, chunk in enumerate(wavs.split(step.samples, dim=1)):
            running, *states = step(chunk, torch.tensor(t), tuple(states))
    for found in (whole, running):
        assert found[0].isfinite().all() and found[1].isnan().all()


def test_branches_that_are_not_known(small_model):
    class Other(MFCCBranch):
        """Of another kind."""

    model = small_model(p=0.0)
    model.branches["mfcc"].__class__ = Other
    with pytest.raises(ValueError, match='no Other .branch "mfcc"'):
        ExportableClassifier(model)
    with pytest.raises(ValueError, match='stretch "mel_x" to 230 frames'):
        ExportableClassifier(DualLevelClassifier(2, resize=[230, 120]))
    with pytest.raises(ValueError, match="own mean"):
        ExportableStep(small_model(center=True))
