"""A stage with a bounded view, run over a stream piece by piece.

Output j of such a stage reads inputs ``stride * j - left`` to
``stride * j + right`` and, past either end of the utterance, what the stage
itself puts there. So the stage can be run as it is on a piece of its input
that has enough context; what the piece's own edges have touched is dropped.
"""

from functools import partial

import torch

from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.models.dual_level import DualLevelClassifier

__all__ = ["Window", "check_parts", "stream_stage", "cnn_stages"]


class Window:
    """Runs a stage over a stream.

    Arguments
    ---------
    function : callable
        The stage: [1, inputs, ...] -> [1, outputs, ...].
    stride : int
        Inputs from output to output.
    left : int
        Inputs before ``stride * j`` that output j reads.
    right : int
        Inputs after ``stride * j`` that output j reads.
    total : callable
        Outputs of so many inputs where the utterance ends.
    least : int
        Inputs that the stage needs to run at all.

    Example
    -------
    >>> pairs = lambda x: x[:, :-1:2] + x[:, 1::2]
    >>> window = Window(pairs, 2, left=0, right=1, total=lambda n: n // 2)
    >>> window.advance(torch.ones(1, 3), end=False)
    tensor([[2.]])
    >>> window.advance(torch.ones(1, 3), end=False)
    tensor([[2., 2.]])
    """

    def __init__(self, function, stride, left, right, total, least=1):
        self.function = function
        self.stride = stride
        # Outputs that the edge of a piece touches
        self.context = -(-left // stride)
        self.right = right
        self.total = total
        self.least = least
        self.held = None
        self.start = 0  # input index of held[0], a multiple of the stride
        self.done = 0  # outputs given

    def advance(self, x, end):
        """Take the next inputs, give the outputs that are complete.

        Arguments
        ---------
        x : torch.Tensor or None, [1, inputs, ...]
            The next inputs; None: none.
        end : bool
            Whether these are the last.

        Returns
        -------
        torch.Tensor or None, [1, outputs, ...]
            The next outputs; None: none yet.
        """
        if x is not None:
            self.held = (
                x if self.held is None else torch.cat([self.held, x], dim=1)
            )
        if self.held is None:
            return None
        heard = self.start + self.held.shape[1]
        if end:
            ready = self.total(heard)
        else:
            # The stage may put something behind the last input of a piece
            # that was not the utterance's last: only what reads none of it
            ready = max(0, (heard - 1 - self.right) // self.stride + 1)
        out = None
        if ready > self.done and self.held.shape[1] >= self.least:
            first = self.start // self.stride
            out = self.function(self.held)
            out = out[:, self.done - first : ready - first]
            self.done = ready
        keep = self.stride * max(0, self.done - self.context) - self.start
        if keep > 0:
            # A copy, or the whole piece stays in memory
            self.held = self.held[:, keep:].clone()
            self.start += keep
        return out

    def state_size(self):
        """Count what is kept.

        Returns
        -------
        int
            Numbers held.
        """
        return 0 if self.held is None else self.held.numel()


def check_parts(model, known, what):
    """Refuse a model that cannot be run stage by stage.

    Arguments
    ---------
    model : torch.nn.Module
        A model.
    known : collection of type
        Classes of branches.
    what : str
        Who refuses, for the message.

    Raises
    ------
    ValueError
        Says what in the model is not known, or needs the whole utterance.

    Example
    -------
    >>> model = DualLevelClassifier(2, resize=[230, 120])
    >>> check_parts(model, [], "a stream")
    Traceback (most recent call last):
    ValueError: a stream cannot stretch "mel_x" to 230 frames: ...
    """
    if not isinstance(model, DualLevelClassifier):
        raise ValueError(f"{what} knows no {type(model).__name__}")
    for name, stream in model.streams.items():
        if type(stream.extractor) not in (MFCC39, LogMelSpectrogram):
            raise ValueError(
                f"{what} knows no {type(stream.extractor).__name__}"
            )
        if stream.resize is not None:
            raise ValueError(
                f'{what} cannot stretch "{name}" to {stream.resize} frames: '
                "that needs the length of the whole utterance; train with "
                "resize: null"
            )
    for name, branch in model.branches.items():
        if type(branch) not in known:
            raise ValueError(
                f'{what} knows no {type(branch).__name__} (branch "{name}")'
            )
        recurrence = getattr(branch, "ds_lstm", None)
        if recurrence is not None and recurrence.bidirectional:
            raise ValueError(f"{what} cannot read backwards: bidirectional")
        if recurrence is not None and recurrence.gate_norms:
            raise ValueError(
                f"{what} knows no gate_norm, which has statistics for each "
                "step from an utterance's first"
            )


def stream_stage(extractor):
    """The stage of a feature extractor.

    Arguments
    ---------
    extractor : MFCC39 or LogMelSpectrogram
        Waveform -> features.

    Returns
    -------
    Window
        Takes samples [1, samples], gives features [1, frames, features].

    Raises
    ------
    ValueError
        Another extractor.

    Example
    -------
    >>> stage = stream_stage(LogMelSpectrogram(512))
    >>> stage.advance(torch.randn(1, 1000), end=False).shape
    torch.Size([1, 3, 128])
    """
    hop = getattr(extractor, "hop_length", None)
    if isinstance(extractor, LogMelSpectrogram):
        half = extractor.n_fft // 2
        left, right = half, half - 1
    elif isinstance(extractor, MFCC39):
        # A delta of a delta
        around = 2 * extractor.delta_window * hop
        left, right = around, around + extractor.win_length - 1
    else:
        raise ValueError(f"streaming knows no {type(extractor).__name__}")
    return Window(extractor, hop, left, right, extractor.num_frames)


def cnn_stages(cnn):
    """The stages of a CNN, one for each block.

    Arguments
    ---------
    cnn : LocalFeatureCNN
        Features over time.

    Returns
    -------
    list of Window
        The first takes [1, frames, bins], the last gives
        [1, frames, output_size].

    Example
    -------
    >>> from speechbrain_dslstm.layers import LocalFeatureCNN
    >>> cnn = LocalFeatureCNN(128)
    >>> len(cnn_stages(cnn))
    2
    """
    stages = [_block_stage(block) for block in cnn.blocks]
    first, last = stages[0].function, stages[-1].function
    stages[0].function = lambda x: first(x.unsqueeze(-1))
    if len(stages) == 1:
        stages[0].function = lambda x: first(x.unsqueeze(-1)).flatten(2)
    else:
        stages[-1].function = lambda x: last(x).flatten(2)
    return stages


def _block_stage(block):
    """Images laid out [1, time, frequency, channel], as between the blocks."""
    kernel, padding = block.kernel_size[0], block.padding[0]
    return Window(
        partial(_run_block, block),
        stride=block.pool_size,
        left=padding,
        right=block.pool_size - 1 - padding + kernel - 1,
        total=block.num_frames,
        least=block.pool_size + kernel - 1 - 2 * padding,
    )


def _run_block(block, x):
    counts = torch.full((1,), x.shape[1], device=x.device)
    return block(x.permute(0, 3, 1, 2), counts).permute(0, 2, 3, 1)
