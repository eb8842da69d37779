"""Utterance embeddings from the models, for SpeechBrain's own recipes."""

import torch
from torch import Tensor

from speechbrain_dslstm.models.dual_level import DualLevelClassifier

__all__ = ["DualSequenceEmbedding"]


class DualSequenceEmbedding(torch.nn.Module):
    """Adapter that makes a model the ``embedding_model`` of a SpeechBrain recipe.

    It replaces an ``ECAPA_TDNN``, but reads waveforms, because its features are
    part of the model; set the recipe's ``compute_features`` to
    ``speechbrain_dslstm.models.Waveform``.

    Arguments
    ---------
    model
        Model whose number of classes is the size of the embedding.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(n_classes=192, p=1.0)
    >>> embedding_model = DualSequenceEmbedding(model)
    >>> embedding_model(torch.randn(2, 16000, 1), torch.ones(2)).shape
    torch.Size([2, 1, 192])
    """

    def __init__(self, model: DualLevelClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed waveforms [batch, samples] or [batch, samples, 1].

        ``lengths``, [batch], are relative lengths (floats) or sample counts
        (integers). Embeddings, [batch, 1, embedding], are not normalised.
        """
        if wavs.dim() == 3:
            wavs = wavs.squeeze(2)
        _, outputs = self.model(wavs, lengths, return_branches=True)
        return self.model.fuse(outputs).unsqueeze(1)
