"""Augmentation: the speed of a clip, the normalised features of streams.

SpeechBrain's own augmentations do the work: any module that maps
[batch, time, features] to the same shape, such as ``SpectrogramDrop``
(SpecAugment, Park et al. 2019, arXiv:1904.08779).
"""

import numpy as np
import torch
import torchaudio

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["StreamAugment", "change_speed", "mixup"]


class StreamAugment(torch.nn.Module):
    """Apply a list of augmentations to each named feature stream.

    Arguments
    ---------
    augmentations : dict of str to list of torch.nn.Module
        For each stream's name the modules applied one after the other.

    Example
    -------
    >>> from speechbrain.augment.freq_domain import SpectrogramDrop
    >>> from speechbrain_dslstm.models import FeatureSequence
    >>> drop = SpectrogramDrop(3, 4, 1, 1, dim=2)
    >>> augment = StreamAugment({"mel_x": [drop]})
    >>> batch = {
    ...     "mel_x": FeatureSequence(torch.ones(1, 2, 9), torch.tensor([2]))
    ... }
    >>> augment(batch)["mel_x"].feats.sum() < 18
    tensor(True)
    """

    def __init__(self, augmentations):
        super().__init__()
        self.augmentations = torch.nn.ModuleDict(
            {
                name: torch.nn.Sequential(*modules)
                for name, modules in augmentations.items()
            }
        )

    @torch.no_grad()
    def forward(self, streams):
        """Augment a batch.

        Arguments
        ---------
        streams : dict of str to FeatureSequence
            Features by stream name; a stream without augmentations, or one
            that the model does not use, is left alone.

        Returns
        -------
        dict of str to FeatureSequence
            Augmented features, zero at padded frames.
        """
        out = dict(streams)
        for name, augment in self.augmentations.items():
            if name in out:
                feats, counts = out[name]
                # SpeechBrain's modules write into what they are given
                feats = zero_padding(augment(feats.clone()), counts)
                out[name] = out[name]._replace(feats=feats)
        return out


def change_speed(wav, percent):
    """Play a waveform slower or faster, its pitch following.

    Arguments
    ---------
    wav : torch.Tensor, [samples]
        Waveform.
    percent : int
        Speed; 100 leaves it as it is.

    Returns
    -------
    torch.Tensor, [samples]
        100 / percent times as long.

    Example
    -------
    >>> change_speed(torch.ones(16000), 80).shape
    torch.Size([20000])
    """
    return torchaudio.functional.resample(wav, percent, 100)


def mixup(streams, alpha, draw=None):
    """Mix each item's features with those of another item of the batch.

    Source: Zhang et al. 2018, arXiv:1710.09412. All streams of an item mix
    with the same partner and weight, and a mixture is as long as the longer
    of the two. Token ids, which cannot be mixed, are refused.

    Arguments
    ---------
    streams : dict of str to FeatureSequence
        Normalised features by stream name.
    alpha : float
        Of the Beta(alpha, alpha) distribution of the weight.
    draw : tuple of (torch.Tensor, float), optional
        Partners and weight to use instead of drawing them.

    Returns
    -------
    streams : dict of str to FeatureSequence
        weight * own + (1 - weight) * partner's.
    partners : torch.Tensor, int64, [batch]
        Whom each item is mixed with.
    weight : float
        Of the item itself.

    Raises
    ------
    ValueError
        ``alpha`` is not positive, or there is text among the streams.

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
        raise ValueError(f"the alpha of mixup must be positive, got {alpha}")
    if "text" in streams:
        raise ValueError("mixup cannot mix token ids: set it to null")
    if draw is None:
        first = next(iter(streams.values())).counts
        partners = torch.randperm(len(first)).to(first.device)
        # From numpy's generator, which the seed of the run sets, too
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
