"""Standardise features by training set, by speaker or frame by frame in a stream."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import length_mask, zero_padding

__all__ = ["FeatureNormalization", "RunningNormalization"]


class FeatureNormalization(torch.nn.Module):
    """Standardise each feature: subtract a mean, divide by a deviation.

    ``source`` selects whose statistics are used:

    - "training": statistics of the training set. ``update`` collects them; they
      are buffers, so they are saved with the weights. Before the first
      ``update`` nothing changes.
    - "speaker": statistics of each utterance's speaker, over all unlabelled audio
      of that speaker, the tested speakers included. ``update`` collects them
      as well, but they belong to the corpus, not to the model, and are not
      saved. Without names of speakers an utterance uses its own.
    - "none": features are not standardised.

    Arguments
    ---------
    num_features
        Features per frame.
    eps
        Lower bound on the standard deviation in the division.
    center_utterances
        Also subtract each utterance's own mean, which holds much of the speaker
        and the channel; this requires the whole utterance. It has no effect with
        the source "speaker", whose means it would undo.
    source
        "training", "speaker" or "none".

    Raises
    ------
    ValueError
        The source is unknown.

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
        num_features: int,
        eps: float = 1e-5,
        center_utterances: bool = False,
        source: str = "training",
    ) -> None:
        super().__init__()
        if source not in self.SOURCES:
            raise ValueError(
                f"unknown normalization {source!r}; expected one of "
                f"{', '.join(self.SOURCES)}"
            )
        self.source = source
        self.num_features = num_features
        self.eps = eps
        self.center_utterances = center_utterances
        names = "count", "mean", "variance"
        for name, value in zip(names, self._no_frames(), strict=True):
            self.register_buffer(name, value)
        # Not buffers: the state has the same keys whatever the corpus
        self.speakers: dict[str, tuple[Tensor, ...]] = {}

    def _no_frames(self) -> tuple[Tensor, ...]:
        """Count, mean and variance before the first frame."""
        # float64: sums over millions of frames
        size, kind = self.num_features, torch.float64
        # new_zeros and sums would import torch's compiler on the meta device
        return (
            torch.zeros((), dtype=kind),
            torch.zeros(size, dtype=kind),
            torch.ones(size, dtype=kind),
        )

    @torch.no_grad()
    def update(
        self,
        feats: Tensor,
        counts: Tensor,
        speakers: Sequence[str] | None = None,
    ) -> None:
        """Add feats [batch, time, features] with counts [batch] valid frames.

        With the source "speaker", each item is added to the statistics of its
        entry in ``speakers``, otherwise to those of the training set.
        """
        valid = length_mask(counts, feats.shape[1])
        if self.source == "speaker" and speakers is not None:
            for item, mask, name in zip(feats, valid, speakers, strict=True):
                before = self.speakers.get(name) or self._no_frames()
                before = [value.to(feats.device) for value in before]
                self.speakers[name] = _add_frames(before, item[mask])
        else:
            before = self.count, self.mean, self.variance
            self._keep(_add_frames(before, feats[valid]))

    def reset(self) -> None:
        """Forget the statistics."""
        self._keep(self._no_frames())
        self.speakers.clear()

    @property
    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the number of frames, and of mean and variance [features]."""
        return self.count.clone(), self.mean.clone(), self.variance.clone()

    def restore(self, statistics: tuple[Tensor, Tensor, Tensor]) -> None:
        """Replace the statistics by others, such as those of another time."""
        self._keep(statistics)

    def blend(
        self, statistics: tuple[Tensor, Tensor, Tensor], weight: float
    ) -> None:
        """Mix in other ``statistics``, as if they had this share of the frames."""
        count, *own = self.statistics
        # Exact at both ends
        mixed = own if weight == 0 else statistics[1:]
        if 0 < weight < 1:
            mixed = _mix(own, statistics[1:], weight)
        self._keep((count, *mixed))

    def _keep(self, statistics):
        for old, new in zip(self.buffers(), statistics, strict=True):
            old.copy_(new)

    def forward(
        self,
        feats: Tensor,
        counts: Tensor,
        speakers: Sequence[str] | None = None,
    ) -> Tensor:
        """Standardise feats [batch, time, features]; padded frames become 0.

        ``counts`` [batch] holds the valid frames, ``speakers`` the names that
        ``update`` has received. Without names, the source "speaker" treats
        each item as a speaker of its own.
        """
        if self.source == "speaker":
            mean, deviation = self._speaker_statistics(feats, counts, speakers)
        elif self.source == "training":
            mean, deviation = self.mean, self.variance.sqrt()
        if self.source != "none":
            deviation = deviation.clamp(min=self.eps).to(feats)
            feats = (feats - mean.to(feats)) / deviation
        if self.center_utterances and self.source != "speaker":
            feats = feats - _utterance_mean(feats, counts)
        return zero_padding(feats, counts)

    def _speaker_statistics(self, feats, counts, speakers):
        """Mean and deviation [batch, 1, features] of each item's speaker."""
        if speakers is not None:
            unknown = sorted(set(speakers) - self.speakers.keys())
            if unknown:
                raise ValueError(
                    f"no feature statistics of speaker {unknown[0]!r}: pass "
                    "all audio of the speaker to update() first"
                )
            known = zip(
                *(self.speakers[name] for name in speakers), strict=True
            )
            _, mean, variance = map(torch.stack, known)
            return mean.unsqueeze(1), variance.sqrt().unsqueeze(1)
        mean = _utterance_mean(feats, counts)
        squares = zero_padding(feats - mean, counts).square()
        return mean, _utterance_mean(squares, counts).sqrt()


def _utterance_mean(feats, counts):
    """Mean over the valid frames of each item: [batch, 1, features]."""
    total = zero_padding(feats, counts).sum(dim=1, keepdim=True)
    return total / counts.view(-1, 1, 1).to(feats)


def _add_frames(statistics, frames):
    """Count, mean and variance with more frames [frames, features]."""
    count, *moments = statistics
    frames = frames.double()
    more = frames.mean(0), frames.var(0, correction=0)
    total = count + len(frames)
    return total, *_mix(moments, more, len(frames) / total)


def _mix(moments, others, share):
    """Mean and variance of frames of which ``share`` have the moments ``others``."""
    (mean, variance), (mean_2, variance_2) = moments, others
    shift = mean_2 - mean
    spread = (1 - share) * variance + share * variance_2
    return (
        mean + shift * share,
        spread + (1 - share) * share * shift.square(),
    )


class RunningNormalization(FeatureNormalization):
    """Standardise, then subtract the mean of the frames received so far.

    The mean begins at the training set's, as if ``prior`` frames of it had been
    received; with every frame it comes closer to the utterance's own.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, prior: float = 25.0
    ) -> None:
        super().__init__(num_features, eps)
        self.prior = prior

    def forward(
        self,
        feats: Tensor,
        counts: Tensor,
        speakers: Sequence[str] | None = None,
    ) -> Tensor:
        """Standardise feats [batch, time, features]; ``speakers`` is ignored."""
        out, _ = self.step(super().forward(feats, counts), None)
        return zero_padding(out, counts)

    def step(
        self, feats: Tensor, state: tuple[int | Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[int | Tensor, Tensor]]:
        """Subtract the running mean from the next standardised frames.

        ``state``, number and sum of the frames so far, comes from the previous
        step; None at the start.
        """
        received, total = state or (0, torch.zeros_like(feats[:, :1]).double())
        # float64: the sum stays exact enough however long the stream is
        sums = total + feats.double().cumsum(dim=1)
        frames = received + torch.arange(1, feats.shape[1] + 1)
        frames = frames.to(sums).view(1, -1, 1) + self.prior
        centred = feats - (sums / frames).to(feats)
        if feats.shape[1]:
            total = sums[:, -1:]
        return centred, (received + feats.shape[1], total)
