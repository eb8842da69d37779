"""Select channels of a recording, or mix them without losing any to another.

The mean of two channels of opposite phase is silence. ``Mixer`` compares, in
cells of a second, the energy of the mean with that of the channels, and takes
the loudest channel where the mean has lost it.
"""

from collections.abc import Iterable, Iterator
from numbers import Integral

import numpy as np

from speechbrain_dslstm.audio.checks import AudioError, printable

__all__ = ["Channel", "check_channel", "select_channels"]

Channel = int | str
CELL = 1.0  # seconds
# Least ratio of the mean's energy to that of a channel, times the number of
# channels. Unrelated channels have 1, equal ones have their number
LEAST = 0.5
FADE = 0.005  # seconds


def check_channel(channel: Channel) -> Channel:
    """Refuse all but an index, "mix" and "each"; return it."""
    if isinstance(channel, Integral) and not isinstance(channel, bool):
        if channel >= 0:
            return int(channel)
    elif isinstance(channel, str) and channel in ("mix", "each"):
        return channel
    raise AudioError(
        f'unknown channel {channel!r}; expected "mix", "each" or an index '
        "from 0",
        "of a wrong type",
    )


def select_channels(
    pieces: Iterable[np.ndarray],
    channel: Channel,
    rate: int,
    channels: int,
    source: object,
    cell: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield pieces [samples, channels] with one channel, or all of "each".

    ``cell`` are the seconds that are mixed in one way, one if left out.
    """
    channel = check_channel(channel)
    if channel == "mix":
        if channels == 1:
            return iter(pieces)
        return mix_channels(pieces, rate, cell)
    if channel == "each":
        return iter(pieces)
    if channel >= channels:
        last = f"0 to {channels - 1}" if channels > 1 else "0"
        raise AudioError(
            f"no channel {channel} in {printable(source)}, which has {channels} "
            f"({last})",
            "of a wrong shape",
        )
    return (piece[:, [channel]] for piece in pieces)


def mix_channels(
    pieces: Iterable[np.ndarray], rate: int, cell: float | None = None
) -> Iterator[np.ndarray]:
    """Yield pieces [samples, channels] mixed to one channel, [samples, 1]."""
    mixer, size, held = _Mixer(rate), max(1, round((cell or CELL) * rate)), None
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece])
        cells = len(held) // size
        for k in range(cells):
            yield mixer.mix(held[k * size : (k + 1) * size])
        held = held[cells * size :]
    if held is not None and len(held):
        yield mixer.mix(held)


class _Mixer:
    """Mixes one cell after the other; the choice may change between cells."""

    def __init__(self, rate: int) -> None:
        self.weights, self.fade = None, max(1, round(FADE * rate))

    def mix(self, cell):
        """Mix a cell [samples, channels] to [samples, 1]."""
        weights = self._choose(cell)
        mono = cell @ weights
        if self.weights is not None and (weights != self.weights).any():
            size = min(self.fade, len(cell))
            ramp = np.linspace(0, 1, size, endpoint=False, dtype="float32")
            before = cell[:size] @ self.weights
            mono[:size] = ramp * mono[:size] + (1 - ramp) * before
        self.weights = weights
        return mono[:, None]

    def _choose(self, cell):
        channels = cell.shape[1]
        mean = np.full(channels, 1 / channels, "float32")
        # float64: samples up to 1000 are accepted
        energy = np.square(cell, dtype="float64").sum(axis=0)
        left = np.square(cell.mean(axis=1), dtype="float64").sum()
        if not energy.any():
            return mean if self.weights is None else self.weights
        if left >= LEAST * energy.mean() / channels:
            return mean
        # The one of the last cell, unless another is much louder: channels of
        # opposite phase are as loud as each other
        best = int(energy.argmax())
        last = self.weights
        if last is not None and last.max() == 1:
            before = int(last.argmax())
            best = before if energy[before] >= energy[best] / 2 else best
        weights = np.zeros(channels, "float32")
        weights[best] = 1
        return weights
