"""Feature streams: an extractor, its normalisation and the padded batch it gives."""

from typing import NamedTuple

import torch

from speechbrain_dslstm.features.normalization import FeatureNormalization

__all__ = ["FeatureSequence", "FeatureStream"]


class FeatureSequence(NamedTuple):
    """A padded batch of feature sequences and how long each one is.

    Arguments
    ---------
    feats : torch.Tensor, [batch, time, features]
        Features, zero at padded frames.
    counts : torch.Tensor, int64, [batch]
        Valid frames.

    Example
    -------
    >>> FeatureSequence(torch.zeros(1, 2, 39), torch.tensor([2])).counts
    tensor([2])
    """

    feats: torch.Tensor
    counts: torch.Tensor


Sequence = FeatureSequence  # the name before 0.2


class FeatureStream(torch.nn.Module):
    """An extractor, its normalisation and, as an option, a fixed length.

    Arguments
    ---------
    extractor : torch.nn.Module
        ``extractor(wavs, wav_lens) -> [batch, time, num_features]``, with
        ``num_frames(samples)``.
    num_features : int
        Features per frame.
    resize : int, optional
        Stretch every item to so many frames by nearest neighbour, as the
        paper's code does. None: native variable length.
    center_utterances : bool
        Take out each utterance's own mean, see ``FeatureNormalization``.
    normalization : str
        Whose statistics: "training", "speaker" or "none", see there.

    Example
    -------
    >>> from speechbrain_dslstm import LogMelSpectrogram
    >>> stream = FeatureStream(LogMelSpectrogram(512), 128)
    >>> feats, counts = stream(
    ...     torch.randn(2, 16000), torch.tensor([16000, 400])
    ... )
    >>> feats.shape, counts
    (torch.Size([2, 63, 128]), tensor([63,  2]))
    """

    def __init__(
        self,
        extractor,
        num_features,
        resize=None,
        center_utterances=False,
        normalization="training",
    ):
        super().__init__()
        self.extractor = extractor
        self.normalization = FeatureNormalization(
            num_features,
            center_utterances=center_utterances,
            source=normalization,
        )
        self.resize = resize

    def get_config(self) -> dict:
        """Constructor arguments that build the same stream."""
        return {
            "extractor": self.extractor,
            "num_features": self.normalization.num_features,
            "resize": self.resize,
            "center_utterances": self.normalization.center_utterances,
            "normalization": self.normalization.source,
        }

    def extract(self, wavs, counts):
        """Features as the extractor gives them.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        counts : torch.Tensor, int64, [batch]
            Valid samples.

        Returns
        -------
        FeatureSequence
            Features and frame counts.
        """
        feats = self.extractor(wavs, counts)
        return FeatureSequence(feats, self.extractor.num_frames(counts))

    def stretch(self, feats, counts):
        """Bring each item to ``resize`` frames, where that is set.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, num_features]
            Features as the extractor gives them.
        counts : torch.Tensor, int64, [batch]
            Valid frames.

        Returns
        -------
        FeatureSequence
            Features and frame counts.
        """
        if self.resize is None:
            return FeatureSequence(feats, counts)
        # Nearest neighbour of each item's own valid frames
        steps = torch.arange(self.resize, device=feats.device)
        index = steps * counts.unsqueeze(1) // self.resize
        index = index.unsqueeze(-1).expand(-1, -1, feats.shape[2])
        counts = torch.full_like(counts, self.resize)
        return FeatureSequence(feats.gather(1, index), counts)

    def forward(self, wavs, counts):
        """Normalised features.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        counts : torch.Tensor, int64, [batch]
            Valid samples.

        Returns
        -------
        FeatureSequence
            Features and frame counts.
        """
        return self.normalize(*self.extract(wavs, counts))

    def normalize(self, feats, counts, speakers=None):
        """Normalise what ``extract`` gave, and stretch it.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, num_features]
            Features as the extractor gives them.
        counts : torch.Tensor, int64, [batch]
            Valid frames.
        speakers : list of str, optional
            Speaker of each item, see ``FeatureNormalization``.

        Returns
        -------
        FeatureSequence
            Features and frame counts.
        """
        feats = self.normalization(feats, counts, speakers)
        return self.stretch(feats, counts)
