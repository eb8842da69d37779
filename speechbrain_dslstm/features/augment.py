"""Augmentation of training data: change of speed, feature masking, mixup.

Features are augmented by SpeechBrain's own modules: any module that maps
[batch, time, features] to the same shape, such as ``SpectrogramDrop``
(SpecAugment, Park et al. 2019, arXiv:1904.08779).

A ``FeatureSequence`` is a padded batch with its frame counts, see
``speechbrain_dslstm.models``.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
import torchaudio
from torch import Tensor

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["StreamAugment", "change_speed", "mixup"]

# A models.FeatureSequence; features may not import models
S = TypeVar("S", bound=tuple)


class StreamAugment(torch.nn.Module):
    """Apply a list of augmentations to each named feature stream.

    Arguments
    ---------
    augmentations
        Modules to apply, one after the other, by name of the stream.

    Example
    -------
    >>> from speechbrain.augment.freq_domain import SpectrogramDrop
    >>> from speechbrain_dslstm.models import FeatureSequence
    >>> augment = StreamAugment({"mel": [SpectrogramDrop(3, 4, 1, 1, dim=2)]})
    >>> mel = FeatureSequence(torch.ones(1, 2, 9), torch.tensor([2]))
    >>> augment({"mel": mel})["mel"].feats.sum() < 18
    tensor(True)
    """

    def __init__(
        self, augmentations: Mapping[str, Sequence[torch.nn.Module]]
    ) -> None:
        super().__init__()
        self.augmentations = torch.nn.ModuleDict(
            {
                name: torch.nn.Sequential(*modules)
                for name, modules in augmentations.items()
            }
        )

    @torch.no_grad()
    def forward(self, streams: Mapping[str, S]) -> dict[str, S]:
        """Augment features, [batch, time, features], zero at padded frames.

        A stream without augmentations stays as it is, and augmentations of a
        stream that the model does not use are ignored.
        """
        out = dict(streams)
        for name, augment in self.augmentations.items():
            if name in out:
                feats, counts = out[name]
                # SpeechBrain's modules write into their input
                feats = zero_padding(augment(feats.clone()), counts)
                out[name] = out[name]._replace(feats=feats)
        return out


def change_speed(wav: Tensor, percent: int) -> Tensor:
    """Change the speed of wav, [samples], to ``percent``; the pitch changes, too."""
    return torchaudio.functional.resample(wav, percent, 100)


def mixup(
    streams: Mapping[str, S],
    alpha: float,
    draw: tuple[Tensor, float] | None = None,
) -> tuple[dict[str, S], Tensor, float]:
    """Mix each item's features with those of another item of the batch.

    Source: Zhang et al. 2018, arXiv:1710.09412. All streams of an item mix
    with the same partner and weight, and a mixture is as long as the longer of
    the two.

    Arguments
    ---------
    streams
        Normalised features by stream name.
    alpha
        Parameter of the Beta(alpha, alpha) distribution of the weight.
    draw
        Partners and weight to use instead of drawing them.

    Returns
    -------
    streams
        weight * own + (1 - weight) * partner's.
    partners : [batch]
        Index of the item that each item is mixed with.
    weight
        Weight of the item itself.

    Raises
    ------
    ValueError
        ``alpha`` is not positive, or one of the streams is text.

    Example
    -------
    >>> from speechbrain_dslstm.models import FeatureSequence
    >>> feats = torch.tensor([[[1.0], [1.0]], [[5.0], [0.0]]])
    >>> streams = {"mfcc": FeatureSequence(feats, torch.tensor([2, 1]))}
    >>> draw = torch.tensor([1, 0]), 0.75
    >>> mixed, _, _ = mixup(streams, 0.4, draw)
    >>> mixed["mfcc"].feats[:, :, 0], mixed["mfcc"].counts
    (tensor([[2.0000, 0.7500],
            [4.0000, 0.2500]]), tensor([2, 2]))
    """
    if alpha <= 0:
        raise ValueError(f"mixup's alpha must be positive, got {alpha}")
    if "text" in streams:
        raise ValueError(
            "mixup cannot mix token ids of the stream text: set mixup to null"
        )
    if draw is None:
        first = next(iter(streams.values())).counts
        partners = torch.randperm(len(first)).to(first.device)
        # NumPy's generator is seeded by the run as well
        draw = partners, float(np.random.beta(alpha, alpha))
    partners, weight = draw
    mixed = {
        name: one._replace(
            feats=torch.lerp(one.feats[partners], one.feats, weight),
            counts=torch.maximum(one.counts, one.counts[partners]),
        )
        for name, one in streams.items()
    }
    return mixed, partners, weight
