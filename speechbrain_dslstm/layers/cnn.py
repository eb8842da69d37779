"""Local feature learning blocks: convolutions over a spectrogram.

A block is a convolution, batch normalisation, ReLU and max pooling. Images
are [batch, channel, time, frequency] in channels-last memory, so that
[batch, time, frequency, channel] is a view of them. The paper normalises before
it pools; ``pool_first`` pools before it normalises, which reads and writes a
quarter of the values.

Source of kernels and channels: arXiv:1910.08874 and its authors' public code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.kernels.conv_pool import (
    ClipConvPool,
    conv_moments,
    conv_pool,
    prefers_single_clips,
)
from speechbrain_dslstm.layers.batch_norm import MaskedBatchNorm, masked_moments
from speechbrain_dslstm.lengths import check_later, length_mask, zero_padding

__all__ = ["LocalFeatureBlock", "LocalFeatureCNN"]


class LocalFeatureBlock(torch.nn.Module):
    """Convolution, masked batch norm, ReLU and max pooling.

    The convolution has a kernel of ``kernel_size`` in time and frequency,
    padding (k - 1) // 2 and stride 1. The arguments are those of
    ``LocalFeatureCNN``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        pool_size: int = 2,
        pool_first: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = tuple(kernel_size)
        self.padding = tuple((k - 1) // 2 for k in self.kernel_size)
        self.pool_size = pool_size
        self.pool_first = pool_first
        sizes = in_channels, out_channels, self.kernel_size
        # No bias: the normalisation would subtract it again
        conv = torch.nn.Conv2d(*sizes, padding=self.padding, bias=False)
        self.conv = conv.to(memory_format=torch.channels_last)
        self.pool = torch.nn.MaxPool2d(pool_size)
        self.norm = MaskedBatchNorm(out_channels)

    def _conv_size(self, n, axis):
        """Size of axis 0 (time) or 1 (frequency) after the convolution."""
        return n + 2 * self.padding[axis] - self.kernel_size[axis] + 1

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Output frames of ``n`` input frames."""
        return self._conv_size(n, 0) // self.pool_size

    def num_bins(self, n: int) -> int:
        """Output frequency bins of ``n`` input bins."""
        return self._conv_size(n, 1) // self.pool_size

    def _norm_may_come_first(self, x: Tensor) -> bool:
        """Whether batch norm may move before the pooling and is faster there.

        In evaluation it is one affine function per channel, which commutes
        with the maximum if its scale is not negative.
        """
        if self.training or self.norm.training or not prefers_single_clips(x):
            return False
        return bool((self.norm.weight >= 0).all())

    def folded(self, x: Tensor) -> ClipConvPool | None:
        """Return the block with the batch norm folded into its filters.

        It evaluates single clips like those of x, [batch, in_channels, time,
        frequency]. None if it cannot be folded, so that ``forward`` must run.
        """
        if self.pool_first and not self._norm_may_come_first(x):
            return None
        scale, shift = self.norm.affine()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        if not weight.dtype == shift.dtype == x.dtype:
            return None
        return ClipConvPool(weight, self.padding, self.pool_size, shift)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Filter, normalise and pool images [batch, channel, time, frequency].

        ``counts``, [batch], are the valid frames; later frames are zero in the
        images and in the result.
        """
        weight, frames = self.conv.weight, self._conv_size(counts, 0)
        sizes = self.padding, self.pool_size
        counts = frames // self.pool_size
        if self.pool_first and not self._norm_may_come_first(x):
            pooled = conv_pool(x, weight, *sizes, None, counts)
            out = self.norm(pooled.permute(0, 2, 3, 1), counts, relu=True)
            return out.permute(0, 3, 1, 2)
        # Increasing functions commute with the maximum, so shift and ReLU may
        # follow the pooling; the scale, which may be negative, comes before it
        image = None
        if not self.training:
            scale, shift = self.norm.affine()
        elif x.shape[1] == 1 and not x.requires_grad:
            moments = conv_moments(x, weight, self.padding, frames)
            scale, shift = self.norm.affine(moments)
        else:
            # One clip at a time fits a CPU's cache, in the backward pass too
            clips = x.split(1) if x.device.type == "cpu" else [x]
            image = torch.cat([self.conv(clip) for clip in clips])
            mask = length_mask(frames, image.shape[2])[:, :, None, None]
            moments = masked_moments(image.permute(0, 2, 3, 1), mask)
            scale, shift = self.norm.affine(moments)
        scale = scale.view(-1, 1, 1, 1)
        if image is None:
            return conv_pool(x, weight * scale, *sizes, shift, counts)
        out = (self.pool(image * scale[:, 0]) + shift.view(-1, 1, 1)).relu()
        out = zero_padding(out.permute(0, 2, 3, 1), counts)
        return out.permute(0, 3, 1, 2)


class LocalFeatureCNN(torch.nn.Module):
    """A stack of ``LocalFeatureBlock`` over one spectrogram.

    Arguments
    ---------
    input_size
        Frequency bins of the spectrogram.
    channels
        Output channels of each block.
    kernel_size
        Size of all convolutions in time and frequency. The paper: (2, 4) for
        the fine-time spectrogram x, (4, 2) for the fine-frequency one y.
    pool_size
        Size and stride of each max pooling in time and frequency.
    pool_first
        Pool before normalisation (fast) instead of after ReLU (the paper).

    Raises
    ------
    ValueError
        The blocks leave no frequency bin.

    Example
    -------
    >>> cnn = LocalFeatureCNN(128, kernel_size=(2, 4))
    >>> out, counts = cnn(torch.randn(2, 230, 128), torch.tensor([230, 99]))
    >>> out.shape, counts
    (torch.Size([2, 56, 496]), tensor([56, 24]))
    >>> cnn.output_size, cnn.num_frames(230), cnn.min_frames(1)
    (496, 56, 7)
    """

    def __init__(
        self,
        input_size: int,
        channels: Sequence[int] = (64, 16),
        kernel_size: Sequence[int] = (2, 4),
        pool_size: int = 2,
        pool_first: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        blocks, bins = [], input_size
        for inputs, outputs in zip([1, *channels[:-1]], channels, strict=True):
            sizes = inputs, outputs, kernel_size, pool_size
            blocks.append(LocalFeatureBlock(*sizes, pool_first))
            bins = blocks[-1].num_bins(bins)
        if bins < 1:
            raise ValueError(
                f"{input_size} frequency bins are too few for "
                f"{len(channels)} blocks of kernel {tuple(kernel_size)}"
            )
        self.blocks = torch.nn.ModuleList(blocks)
        self.output_size = bins * channels[-1]

    def get_config(self) -> dict[str, int | bool | list[int]]:
        """Constructor arguments that build the same layers."""
        first = self.blocks[0]
        return {
            "input_size": self.input_size,
            "channels": [block.conv.out_channels for block in self.blocks],
            "kernel_size": list(first.kernel_size),
            "pool_size": first.pool_size,
            "pool_first": first.pool_first,
        }

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Output frames of ``n`` input frames."""
        for block in self.blocks:
            n = block.num_frames(n)
        return n

    def min_frames(self, frames: int) -> int:
        """Input frames that ``frames`` output frames need."""
        n = frames
        while self.num_frames(n) < frames:
            n += 1
        return n

    def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Local features of normalised spectrograms [batch, time, frequency].

        ``counts``, [batch], are the valid frames. Returns features, [batch,
        time', output_size], frequency by channel and zero at padded frames,
        and their valid frames, [batch]. Another number of bins, or an item too
        short for one frame, raises ValueError.
        """
        if x.shape[2] != self.input_size:
            raise ValueError(
                f"expected {self.input_size} frequency bins, got {x.shape[2]}"
            )
        shortest = counts.min()
        expected = "enough frames for the convolutions"
        deferred = check_later(self.num_frames(shortest) >= 1, expected)
        shortest = 0 if deferred else int(shortest)
        if not deferred and self.num_frames(shortest) < 1:
            raise ValueError(
                f"an item of {shortest} frames is too short: at least "
                f"{self.min_frames(1)} frames are needed"
            )
        # A convolution may read past an item's end, where it must read zeros
        if shortest < x.shape[1]:
            x = zero_padding(x, counts)
        x, out = x.unsqueeze(1), None
        if prefers_single_clips(x) and not torch.is_grad_enabled():
            out = self._clip_by_clip(x, counts)
        if out is not None:
            return out, self.num_frames(counts)
        for block in self.blocks:
            x, counts = block(x, counts), block.num_frames(counts)
        return x.permute(0, 2, 3, 1).flatten(2), counts

    def _clip_by_clip(self, x: Tensor, counts: Tensor) -> Tensor | None:
        """Features in evaluation, one clip at a time, which fits a CPU's cache.

        None if a block must run its own ``forward``.
        """
        if torch.is_autocast_enabled(x.device.type):
            return None
        parts = [part for block in self.blocks for part in block.modules()]
        if any(
            p.training or p._forward_hooks or p._forward_pre_hooks
            for p in parts
        ):
            return None
        if any(type(block) is not LocalFeatureBlock for block in self.blocks):
            return None
        blocks = [block.folded(x) for block in self.blocks]
        if None in blocks:
            return None
        found = []
        for clip, frames in zip(x.split(1), counts.tolist(), strict=True):
            # The convolution pads the end of the clip with zeros itself
            clip = clip[:, :, :frames]
            for block in blocks:
                clip = block(clip)
            found.append(clip.permute(0, 2, 3, 1).flatten(2))
        if len(found) > 1:
            found = [pad_sequence([one[0] for one in found], batch_first=True)]
        missing = self.num_frames(x.shape[2]) - found[0].shape[1]
        return pad(found[0], (0, 0, 0, missing)) if missing else found[0]
