"""Inputs of a model: extractor, normalisation and, optionally, fixed length."""

from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_dslstm.features.normalization import FeatureNormalization

__all__ = ["FeatureSequence", "FeatureStream"]


class FeatureSequence(NamedTuple):
    """A padded batch of feature sequences with their lengths.

    Arguments
    ---------
    feats : [batch, time, features]
        Features, zero at padded frames.
    counts : [batch]
        Valid frames, int64.

    Example
    -------
    >>> FeatureSequence(torch.zeros(1, 2, 39), torch.tensor([2])).counts
    tensor([2])
    """

    feats: Tensor
    counts: Tensor


Sequence = FeatureSequence  # the former name
Streams = dict[str, FeatureSequence]  # by name of the stream


class FeatureStream(torch.nn.Module):
    """An extractor, its normalisation and, optionally, a fixed length.

    Arguments
    ---------
    extractor
        ``extractor(wavs, wav_lens) -> [batch, time, num_features]``, with
        ``num_frames(samples)``. One with trained layers, ``WhisperFrames``,
        makes the features in ``refine``, and its stream normalises them there.
    num_features
        Features per frame.
    resize
        Stretch every item to this number of frames by nearest neighbour, as
        the paper's code does. None: native variable length.
    center_utterances, normalization
        ``center_utterances`` and ``source`` of ``FeatureNormalization``.

    Example
    -------
    >>> from speechbrain_dslstm import LogMelSpectrogram
    >>> stream = FeatureStream(LogMelSpectrogram(512), 128)
    >>> stream(torch.randn(2, 16000), torch.tensor([16000, 400])).counts
    tensor([63,  2])
    """

    def __init__(
        self,
        extractor: torch.nn.Module,
        num_features: int,
        resize: int | None = None,
        center_utterances: bool = False,
        normalization: str = "training",
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.normalization = FeatureNormalization(
            num_features,
            center_utterances=center_utterances,
            source=normalization,
        )
        self.resize = resize
        if self.is_trained and normalization == "speaker":
            raise ValueError(
                "the statistics of a speaker would change with every step of an "
                "encoder in training: use trained_layers 0, or normalization "
                "training"
            )

    @property
    def is_trained(self) -> bool:
        """Whether the extractor has layers that are trained with the model."""
        return getattr(self.extractor, "trained_layers", 0) > 0

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same stream."""
        return {
            "extractor": self.extractor,
            "num_features": self.normalization.num_features,
            "resize": self.resize,
            "center_utterances": self.normalization.center_utterances,
            "normalization": self.normalization.source,
        }

    def extract(self, wavs: Tensor, counts: Tensor) -> FeatureSequence:
        """Raw features of wavs [batch, samples]; counts [batch] are valid samples."""
        feats = self.extractor(wavs, counts)
        return FeatureSequence(feats, self.extractor.num_frames(counts))

    def stretch(self, feats: Tensor, counts: Tensor) -> FeatureSequence:
        """Stretch each item to ``resize`` frames, unless that is None."""
        if self.resize is None:
            return FeatureSequence(feats, counts)
        # Nearest neighbour of each item's own valid frames
        steps = torch.arange(self.resize, device=feats.device)
        index = steps * counts.unsqueeze(1) // self.resize
        index = index.unsqueeze(-1).expand(-1, -1, feats.shape[2])
        counts = torch.full_like(counts, self.resize)
        return FeatureSequence(feats.gather(1, index), counts)

    def forward(self, wavs: Tensor, counts: Tensor) -> FeatureSequence:
        """Extract, normalise and stretch features of waveforms [batch, samples]."""
        return self.refine(*self.normalize(*self.extract(wavs, counts)))

    def normalize(
        self, feats: Tensor, counts: Tensor, speakers: list[str] | None = None
    ) -> FeatureSequence:
        """Normalise features of ``extract``, per speaker if so set, and stretch them."""
        if self.is_trained:
            return FeatureSequence(feats, counts)
        feats = self.normalization(feats, counts, speakers)
        return self.stretch(feats, counts)

    def refine(self, feats: Tensor, counts: Tensor) -> FeatureSequence:
        """Run the extractor's trained layers, if any, on features of ``normalize``."""
        if not self.is_trained:
            return FeatureSequence(feats, counts)
        feats, counts = self.extractor.refine(feats, counts)
        return self.stretch(self.normalization(feats, counts), counts)

    def update_statistics(
        self, feats: Tensor, counts: Tensor, speakers: list[str] | None = None
    ) -> None:
        """Add features of ``extract`` to the statistics of the normalisation.

        Those of trained layers are the statistics before the training.
        """
        if self.is_trained:
            with torch.no_grad():
                feats, counts = self.extractor.refine(feats, counts)
        self.normalization.update(feats, counts, speakers)
