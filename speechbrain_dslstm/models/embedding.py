"""The models as an embedding of an utterance, for other people's recipes."""

import torch

__all__ = ["DualSequenceEmbedding"]


class DualSequenceEmbedding(torch.nn.Module):
    """What SpeechBrain's recipes call ``embedding_model``.

    It takes the place of an ``ECAPA_TDNN``, but reads waveforms: its two
    spectrograms are parts of the model. ``compute_features`` in front of it is
    then ``speechbrain_dslstm.models.Waveform``.

    Arguments
    ---------
    model : DualLevelClassifier
        Built with the size of the embedding as its number of classes.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(n_classes=192, p=1.0)
    >>> embedding_model = DualSequenceEmbedding(model)
    >>> embedding_model(torch.randn(2, 16000, 1), torch.ones(2)).shape
    torch.Size([2, 1, 192])
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, wavs, lengths=None):
        """Embed a batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples] or [batch, samples, 1]
            Waveforms in [-1, 1].
        lengths : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        torch.Tensor, [batch, 1, embedding]
            Embeddings, not normalised.
        """
        if wavs.dim() == 3:
            wavs = wavs.squeeze(2)
        _, outputs = self.model(wavs, lengths, return_branches=True)
        return self.model.fuse(outputs).unsqueeze(1)
