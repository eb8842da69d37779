"""Augmentation: the speed of a clip, the normalised features of streams.

SpeechBrain's own augmentations do the work: any module that maps
[batch, time, features] to the same shape, such as ``SpectrogramDrop``
(SpecAugment, Park et al. 2019, arXiv:1904.08779).
"""

import torch
import torchaudio

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["StreamAugment", "change_speed"]


class StreamAugment(torch.nn.Module):
    """Apply a list of augmentations to each named feature stream.

    Arguments
    ---------
    augmentations : dict of str to list of torch.nn.Module
        For each stream's name the modules applied one after the other.

    Example
    -------
    >>> from speechbrain.augment.freq_domain import SpectrogramDrop
    >>> from speechbrain_dslstm.models import Sequence
    >>> drop = SpectrogramDrop(3, 4, 1, 1, dim=2)
    >>> augment = StreamAugment({"mel_x": [drop]})
    >>> batch = {"mel_x": Sequence(torch.ones(1, 2, 9), torch.tensor([2]))}
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
        streams : dict of str to Sequence
            Features by stream name; a stream without augmentations, or one
            that the model does not use, is left alone.

        Returns
        -------
        dict of str to Sequence
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
