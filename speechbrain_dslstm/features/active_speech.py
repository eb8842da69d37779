"""Cut waveforms to their active part, so that pauses cannot decide the emotion.

Features that are averaged over an utterance change with every second of
silence or room noise around the speech. ``ActiveSpeech`` finds the speech by
local measures and by levels relative to the loudest voice. So what is kept of
the speech does not depend on the padding, and neither does the answer.

Symbols: B batch, S samples, T cells of 10 ms.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import lfilter

from speechbrain_dslstm.features.voicing import analyse_frames
from speechbrain_dslstm.lengths import to_counts

__all__ = ["ActiveSpeech", "CellMeasures", "dilate"]

CELL = 0.01  # seconds
RATE = 4000  # Hz, of the signal that is searched for periodicity
BAND = (80.0, 1800.0)  # Hz
PERIODICITY = 0.6  # least autocorrelation of a voiced cell
RUN = 4  # least number of consecutive voiced cells
# Hum and tones are periodic, but their level does not move
STEADY_CELLS, STEADY_RANGE = 25, 1.5  # cells before and after, dB
PREEMPHASIS = 0.9
CUTOFF = 25.0  # Hz, of the high-pass that removes a DC offset
SECOND = 100  # cells
SETTLED = 30  # seconds whose loudest voice is the reference for each of them
LEAST = 10  # active cells; fewer are no speech
NEXT = 3  # cells after a cell that its own measures read
TAIL = 4096  # samples after which the high-pass has forgotten its past
PEAK = 0.9  # of the largest sample; the first one above it places the cells


class CellMeasures(NamedTuple):
    """Level in dB and periodicity of each cell of 10 ms, [T] each."""

    level: Tensor
    periodicity: Tensor


class ActiveSpeech(torch.nn.Module):
    """Remove DC, and cut waveforms to their active part.

    Cells of 10 ms are active if they are voiced (periodic at a pitch of the
    human voice, for 40 ms at least) and at most ``below`` dB quieter than the
    loudest voice; and so are, within ``reach`` of them, cells at most
    ``consonants`` dB quieter, voiced or not. Kept are the active cells, ``margin`` before the
    first and after the last one, and pauses between them; pauses longer than
    ``pause`` are cut to that length. Steady tones, such as hum, are not
    voiced. The loudest voice is that of the first 30 s, later that of the 30 s
    before. Audio without voice (whispers, noise) is judged by its level alone
    and only in its first 30 s. The cells are placed relative to the first peak of
    these 30 s, so padding of any length leaves the cuts at the same samples.

    Arguments
    ---------
    sample_rate
        In Hz.
    below
        Range of the levels of voiced cells in dB.
    consonants
        Range of the levels of other cells in dB; a smaller one, as room noise
        must not be taken for consonants.
    reach
        Seconds from a voiced cell to a consonant.
    pause
        Longest pause that is kept, in seconds.
    margin
        Seconds before the first and after the last active cell.

    Raises
    ------
    ValueError
        The sample rate is below 4 kHz or an argument is negative.

    Example
    -------
    >>> cut = ActiveSpeech()
    >>> time = torch.arange(16000) / 16000
    >>> voice = torch.sin(6.28 * 150 * time * (1 + 0.1 * time))
    >>> voice = voice.sign() * torch.sin(3.14 * time)
    >>> wavs, counts = cut(pad(voice, (16000, 80000)).unsqueeze(0))
    >>> 15000 < int(counts) < 17000
    True
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        below: float = 35.0,
        consonants: float = 25.0,
        reach: float = 0.2,
        pause: float = 0.1,
        margin: float = 0.02,
    ) -> None:
        super().__init__()
        if sample_rate < RATE:
            raise ValueError(
                f"sample_rate must be at least {RATE} Hz, got {sample_rate}"
            )
        sizes = {"below": below, "consonants": consonants, "reach": reach}
        for name, value in {**sizes, "pause": pause, "margin": margin}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.sample_rate = sample_rate
        self.below = below
        self.consonants = consonants
        self.reach = reach
        self.pause = pause
        self.margin = margin
        self.decimation = sample_rate // RATE
        self.hop_low = round(CELL * sample_rate / self.decimation)
        self.hop = self.hop_low * self.decimation  # samples of a cell
        self.reach_cells = round(reach / CELL)
        self.half_pause = round(pause / CELL / 2)
        self.margin_cells = round(margin / CELL)
        # Cells that must follow a cell until its activity is known
        self.lookahead = RUN - 1 + STEADY_CELLS + self.reach_cells

    def get_config(self) -> dict[str, int | float]:
        """Constructor arguments that find the same speech."""
        names = "sample_rate", "below", "consonants", "reach", "pause", "margin"
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Arguments, for ``print``."""
        return ", ".join(f"{k}={v}" for k, v in self.get_config().items())

    @torch.no_grad()
    def forward(
        self, wavs: Tensor, wav_lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cut wavs [batch, samples]; return them with sample counts [batch].

        ``wav_lens``, [batch], are relative lengths (floats) or sample counts
        (integers). The work is done on the CPU.
        """
        counts = to_counts(wav_lens, wavs.shape[1], len(wavs), wavs.device)
        rows = zip(wavs.detach().cpu(), counts.tolist(), strict=True)
        found = [self.cut(wav[:n]) for wav, n in rows]
        sizes = torch.tensor([len(wav) for wav in found], device=wavs.device)
        return pad_sequence(found, batch_first=True).to(wavs), sizes

    def cut(self, wav: Tensor) -> Tensor:
        """Active part of wav [samples], without DC."""
        clean, spans = self._cut(wav)
        return torch.cat([clean[start:end] for start, end in spans])

    def find(self, wav: Tensor) -> list[tuple[int, int]]:
        """Start and end in samples of each part of wav [samples] that is kept."""
        clean, spans = self._cut(wav.detach().cpu())
        lead = len(clean) - len(wav)
        return [(start - lead, end - lead) for start, end in spans]

    def _cut(self, wav):
        """Audio without DC, after the zeros of ``lead``, and its spans to keep."""
        clean = self.remove_dc(wav)
        lead = self.lead(clean)
        clean = pad(clean, (lead, 0))
        kept = self.keep(self.measure(clean))
        return clean, self.spans(kept, len(clean), lead)

    def lead(self, clean: Tensor) -> int:
        """Zeros before audio [samples] that let a cell begin at its first peak."""
        size = clean[: SETTLED * self.sample_rate].abs()
        if not len(size):
            return 0
        # Not the largest one: those of a periodic sound are equal but for rounding
        return -int((size >= PEAK * size.max()).byte().argmax()) % self.hop

    def remove_dc(self, wav: Tensor, past: Tensor | None = None) -> Tensor:
        """Remove DC and rumble from wav [samples] by a first-order high-pass.

        ``past`` are samples before ``wav``: ``TAIL`` of them, or all.
        """
        start = 0 if past is None else len(past)
        x = wav if past is None else torch.cat([past, wav])
        # As if the first sample had always been there: no step at the start
        x = x.double() - x[:1].double()
        pole = 1 - 2 * torch.pi * CUTOFF / self.sample_rate
        weights = x.new_tensor([[1.0, -pole], [1.0, -1.0]])
        return lfilter(x, *weights, clamp=False)[start:].to(wav)

    def measure(self, clean: Tensor) -> CellMeasures:
        """Measure the cells of audio [samples] without DC; the last may be short."""
        hop, low = self.hop, self.hop_low
        size = -(-len(clean) // hop)
        wav = pad(clean.float(), (1, size * hop - len(clean)))
        # Makes the spectra of voice and of most noise flat
        wav = wav[1:] - PREEMPHASIS * wav[:-1]
        power = wav.view(-1, hop).square().mean(1)
        # Three cells are 30 ms
        power = pad(power, (1, 1)).unfold(0, 3, 1).mean(1)
        level = 10 * power.clamp(min=1e-14).log10()
        slow = wav.view(-1, self.decimation).mean(1)
        frames = pad(slow, (3 * low // 2, 2 * low)).unfold(0, 4 * low, low)
        return CellMeasures(level, self._periodicity(frames[:size]))

    def _periodicity(self, frames):
        """Height of the highest maximum of each frame's autocorrelation."""
        found = analyse_frames(frames, self.sample_rate / self.decimation, BAND)
        # Of all frequencies: what is left of rumble and steps is not voiced
        energy = found.power.sum(dim=1, keepdim=True) * (2 / found.n_fft)
        return found.periodicity(energy + 1e-14, beyond=1)

    def active(self, cells: CellMeasures, first: int = 0) -> Tensor:
        """Active cells, bool [T].

        ``first`` is the number of cells before these, a whole number of seconds;
        beyond 30 s, cells need 30 s of others before them.
        """
        level = cells.level
        voiced = cells.periodicity > PERIODICITY
        # Runs of RUN cells
        start = ~dilate(~voiced, 0, RUN - 1)
        start[len(start) - min(RUN - 1, len(start)) :] = False
        voiced = dilate(start, RUN - 1, 0)
        width = 2 * STEADY_CELLS + 1
        both = torch.stack([level, -level])
        highest, lowest = max_pool1d(both, width, 1, STEADY_CELLS)
        voiced &= highest + lowest > STEADY_RANGE
        loudest = self._reference(level, voiced, first)
        core = voiced & (level > loudest - self.below)
        near = dilate(core, self.reach_cells, self.reach_cells)
        return core | (near & (level > loudest - self.consonants))

    def _reference(self, level, voiced, first):
        """Level of the loudest voice that each cell is compared with."""
        size = len(level)
        nothing = -float("inf")
        loud = level.masked_fill(~voiced, nothing)
        loud = pad(loud, (0, -size % SECOND), value=nothing)
        loud = loud.view(-1, SECOND).amax(dim=1)
        before = pad(loud, (SETTLED, -1), value=nothing)
        before = before.unfold(0, SETTLED, 1).amax(dim=1)
        early = max(0, SETTLED - first // SECOND)
        if early:
            before[:early] = loud[:early].max()
        return before.repeat_interleave(SECOND)[:size]

    def keep(self, cells: CellMeasures) -> Tensor:
        """Cells to keep of a whole recording, bool [T]."""
        active = self.active(cells)
        if int(active.sum()) >= LEAST:
            return self.frame(active)
        kept = self.frame(self.loud(cells))
        kept[SETTLED * SECOND :] = False
        return kept

    def frame(self, active: Tensor) -> Tensor:
        """Cells to keep around the active ones of a whole recording, bool [T]."""
        where = active.nonzero()
        first, last = int(where[0]), int(where[-1])
        kept = dilate(active, self.half_pause, self.half_pause)
        kept[: max(0, first - self.margin_cells)] = False
        kept[last + 1 + self.margin_cells :] = False
        # The margin may be longer than half a pause
        kept[max(0, first - self.margin_cells) : first] = True
        kept[last : last + 1 + self.margin_cells] = True
        return kept

    def loud(self, cells: CellMeasures) -> Tensor:
        """Cells near the loudest level of the first 30 s, for audio without voice."""
        level = cells.level.clone()
        level[SETTLED * SECOND :] = -float("inf")
        found = level >= level.max() - self.below
        if int(found.sum()) < LEAST:
            found = level > -float("inf")
        return found

    def spans(
        self, kept: Tensor, samples: int, lead: int = 0
    ) -> list[tuple[int, int]]:
        """Start and end in samples of each run of kept cells, after the lead."""
        edges = pad(kept.byte(), (1, 1)).diff(dim=0).nonzero().flatten()
        edges = (edges * self.hop).clamp(lead, samples).view(-1, 2)
        return [(start, end) for start, end in edges.tolist()]


def dilate(flags: Tensor, before: int, after: int) -> Tensor:
    """Widen True runs of flags [T] by some cells before and after them."""
    wide = pad(flags.float(), (after, before))
    return max_pool1d(wide[None], before + after + 1, 1)[0] > 0
