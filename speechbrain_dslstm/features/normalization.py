"""Standardisation of features by the training set, by speaker, or by a running mean in a stream."""

import torch

from speechbrain_dslstm.lengths import length_mask, zero_padding

__all__ = ["FeatureNormalization", "RunningNormalization"]


class FeatureNormalization(torch.nn.Module):
    """Standardise each feature: take out a mean, divide by a deviation.

    Whose, is the ``source``. "training": those of the training set. ``update``
    collects them, batch after batch; they are buffers, so they travel with
    the weights, and before the first ``update`` nothing is changed.
    "speaker": those of each utterance's speaker, given to ``forward``; this
    uses all unlabelled audio of the speakers tested. "none": nobody's.

    Arguments
    ---------
    num_features : int
        Features per frame.
    eps : float
        Smallest standard deviation divided by.
    center_utterances : bool
        Take out each utterance's own mean as well. It holds much of the
        speaker and the channel, but needs the whole utterance. Not done with
        the source "speaker", whose means it would undo.
    source : str
        "training", "speaker" or "none".

    Raises
    ------
    ValueError
        Another source.

    Example
    -------
    >>> norm = FeatureNormalization(1)
    >>> feats = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> norm.update(feats, torch.tensor([2]))
    >>> norm(feats, torch.tensor([2]))
    tensor([[[-1.],
             [ 1.],
             [ 0.]]])
    """

    SOURCES = ("training", "speaker", "none")

    def __init__(
        self,
        num_features,
        eps=1e-5,
        center_utterances=False,
        source="training",
    ):
        super().__init__()
        if source not in self.SOURCES:
            raise ValueError(
                f"normalization must be one of {', '.join(self.SOURCES)}, "
                f"got {source!r}"
            )
        self.source = source
        self.num_features = num_features
        self.eps = eps
        self.center_utterances = center_utterances
        # float64: sums over millions of frames
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer(
            "mean", torch.zeros(num_features, dtype=torch.float64)
        )
        self.register_buffer(
            "variance", torch.ones(num_features, dtype=torch.float64)
        )

    @torch.no_grad()
    def update(self, feats, counts):
        """Add a batch to the statistics.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, features]
            Features of one batch.
        counts : torch.Tensor, int64, [batch]
            Valid frames of each item.
        """
        frames = feats[length_mask(counts, feats.shape[1])].double()
        n, total = len(frames), self.count + len(frames)
        mean, variance = frames.mean(0), frames.var(0, correction=0)
        shift = mean - self.mean
        old, new = self.count / total, n / total
        self.variance.copy_(
            old * self.variance + new * variance + old * new * shift.square()
        )
        self.mean.add_(shift * new)
        self.count.copy_(total)

    def reset(self):
        """Forget the statistics."""
        self.count.zero_()
        self.mean.zero_()
        self.variance.fill_(1)

    def forward(self, feats, counts, moments=None):
        """Standardise a batch.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, features]
            Features.
        counts : torch.Tensor, int64, [batch]
            Valid frames of each item.
        moments : tuple of two torch.Tensor, each [batch, features], optional
            Mean and deviation of each item's speaker, for the source
            "speaker". Left out, each item is a speaker of its own.

        Returns
        -------
        torch.Tensor, [batch, time, features]
            Standardised features; zero at padded frames.
        """
        if self.source == "speaker":
            if moments is None:
                moments = self._own_moments(feats, counts)
            mean, deviation = (value.unsqueeze(1) for value in moments)
        elif self.source == "training":
            mean, deviation = self.mean, self.variance.sqrt()
        if self.source != "none":
            deviation = deviation.clamp(min=self.eps).to(feats)
            feats = (feats - mean.to(feats)) / deviation
        if self.center_utterances and self.source != "speaker":
            frames = counts.view(-1, 1, 1).to(feats)
            total = zero_padding(feats, counts).sum(dim=1, keepdim=True)
            feats = feats - total / frames
        return zero_padding(feats, counts)

    def _own_moments(self, feats, counts):
        """Mean and deviation of each item's valid frames."""
        frames = counts.view(-1, 1).to(feats)
        mean = zero_padding(feats, counts).sum(dim=1) / frames
        spread = zero_padding(feats - mean.unsqueeze(1), counts)
        return mean, (spread.square().sum(dim=1) / frames).sqrt()


class RunningNormalization(FeatureNormalization):
    """Standardise, then take out the mean of the frames heard so far.

    The mean begins at the training set's, as if ``prior`` frames had been
    heard already; with every frame it comes closer to the utterance's own.

    Arguments
    ---------
    num_features : int
        Features per frame.
    eps : float
        Smallest standard deviation divided by.
    prior : float
        Frames that the training set's mean counts for.

    Example
    -------
    >>> norm = RunningNormalization(1, prior=1.0)
    >>> norm(torch.tensor([[[2.0], [2.0]]]), torch.tensor([2])).flatten()
    tensor([1.0000, 0.6667])
    """

    def __init__(self, num_features, eps=1e-5, prior=25.0):
        super().__init__(num_features, eps)
        self.prior = prior

    def forward(self, feats, counts, moments=None):
        """Standardise a batch.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, features]
            Features.
        counts : torch.Tensor, int64, [batch]
            Valid frames of each item.
        moments : None
            Not used: the statistics are the training set's.

        Returns
        -------
        torch.Tensor, [batch, time, features]
            Zero at padded frames.
        """
        out, _ = self.step(super().forward(feats, counts), None)
        return zero_padding(out, counts)

    def step(self, feats, state):
        """Take the running mean out of the next standardised frames.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, features]
            Standardised features.
        state : tuple or None
            What the step before returned.

        Returns
        -------
        feats : torch.Tensor, [batch, time, features]
            Without the mean.
        state : tuple
            Sum and number of all frames.
        """
        heard, total = state or (0, torch.zeros_like(feats[:, :1]).double())
        # float64: however long the stream, its sum loses nothing
        sums = total + feats.double().cumsum(dim=1)
        frames = heard + torch.arange(1, feats.shape[1] + 1)
        frames = frames.to(sums).view(1, -1, 1) + self.prior
        centred = feats - (sums / frames).to(feats)
        if feats.shape[1]:
            total = sums[:, -1:]
        return centred, (heard + feats.shape[1], total)
