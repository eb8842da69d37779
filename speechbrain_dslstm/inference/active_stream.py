"""Cut a stream to its active speech, exactly as ``ActiveSpeech`` cuts the whole.

The loudest voice of the first 30 s decides what is active in them, and a peak
decides where the cells begin. While these are not known, an earlier decision can
change; then the stream starts anew with the
audio of these seconds, which is held until they are over. Later decisions
depend on the past and on half a second of audio ahead, so they are final and
no more than that audio and one pause are held.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechbrain_dslstm.features.active_speech import (
    LEAST,
    NEXT,
    SECOND,
    SETTLED,
    TAIL,
    ActiveSpeech,
    CellMeasures,
    dilate,
)

__all__ = ["ActiveFront"]

BEFORE = 3  # cells before a cell that its own measures read
NEW = 5  # new cells that are worth another decision


class ActiveFront:
    """Takes audio in chunks of any size and returns the samples to keep.

    >>> speech = ActiveSpeech()
    >>> front = ActiveFront(speech)
    >>> wav = torch.randn(9000)
    >>> started, kept = front.advance(wav[:4000], end=False)
    >>> started, kept = front.advance(wav[4000:], end=True)
    >>> torch.allclose(kept, speech.cut(wav), atol=1e-6)
    True
    """

    def __init__(self, speech: ActiveSpeech) -> None:
        self.speech = speech
        self.past = torch.zeros(0)  # samples that the high-pass remembers
        self.lead = 0  # zeros before the audio, as of ``ActiveSpeech.lead``
        self.moved = False  # whether they changed since the last decision
        self.clean = torch.zeros(0)  # audio without DC from cell ``start`` on
        self.start = 0
        self.samples = 0  # with the lead
        none = torch.zeros(0)
        self.cells = CellMeasures(none, none)  # from cell ``first`` on
        self.first = 0
        self.done = 0  # cells that are decided
        self.kept = torch.zeros(0, dtype=torch.bool)  # of the first 30 s
        self.settled = False
        self.found = 0  # active cells so far, up to LEAST
        self.spoken = False  # whether there was an active cell
        self.waiting = []  # kept, but not yet known to be speech
        self.tail = None  # audio after the last active cell of a long pause
        self.early = None  # audio and cells of 30 s without speech

    def advance(self, chunk: Tensor, end: bool) -> tuple[bool, Tensor]:
        """Take samples; return whether the audio starts anew, and what to keep."""
        self._receive(chunk.detach().cpu(), end)
        ahead = 0 if end else self.speech.lookahead
        known = self.first + len(self.cells.level) - ahead
        if known <= 0 or not (end or known - self.done >= NEW):
            return False, self.clean[:0]
        active = self.speech.active(self.cells, self.first)
        active = active[: known - self.first]
        if not self.settled:
            anew, kept = self._decide_early(active, end)
            if known >= SETTLED * SECOND and not end:
                self._settle(active)
        else:
            anew, kept = False, self._decide(active, end)
        if end and self.found < LEAST:
            kept = self._without_voice()
        return anew, kept

    def state_size(self) -> int:
        """Count the numbers held."""
        held = [self.past, self.clean, *self.cells, self.kept, *self.waiting]
        held += [self.tail] if self.tail is not None else []
        held += [self.early[0], *self.early[1]] if self.early else []
        return sum(value.numel() for value in held)

    def _receive(self, chunk, end):
        """Remove DC, and measure the cells that are now complete."""
        speech, hop = self.speech, self.speech.hop
        if len(chunk):
            clean = speech.remove_dc(chunk, self.past)
            self.past = torch.cat([self.past, chunk])[-TAIL:].clone()
            self.clean = torch.cat([self.clean, clean])
            self.samples += len(chunk)
            if not self.settled:
                self._align()
        measured = self.first + len(self.cells.level)
        complete = self.samples // hop - NEXT + 1
        if end:
            complete = -(-self.samples // hop)
        if complete <= measured:
            return
        begin = max(self.start, measured - BEFORE)
        audio = self.clean[(begin - self.start) * hop :]
        if not end:
            audio = audio[: (self.samples // hop - begin) * hop]
        part = slice(measured - begin, complete - begin)
        new = speech.measure(audio)
        self.cells = CellMeasures(
            *(
                torch.cat([old, value[part]])
                for old, value in zip(self.cells, new, strict=True)
            )
        )

    def _align(self):
        """Place the cells anew if another peak decides where they begin."""
        audio = self.clean[self.lead :]
        lead = self.speech.lead(audio)
        if lead != self.lead:
            self.clean = pad(audio, (lead, 0))
            self.samples = len(self.clean)
            self.cells = CellMeasures(*(v[:0] for v in self.cells))
            self.lead, self.moved = lead, True

    def _audio(self, kept, begin):
        """Samples of the kept cells, the first of which is cell ``begin``."""
        hop = self.speech.hop
        shift = (begin - self.start) * hop
        limit = len(self.clean) - shift
        lead = max(0, self.lead - begin * hop)
        spans = self.speech.spans(kept, limit, lead)
        parts = [self.clean[shift + a : shift + b] for a, b in spans]
        return torch.cat([self.clean[:0], *parts])

    def _decide_early(self, active, end):
        """Decide on all cells of the first 30 s, again if a louder voice came."""
        self.found = min(LEAST, int(active.sum()))
        if self.found < LEAST:
            anew = len(self.kept) > 0
            self.kept, self.done = self.kept[:0], 0
            return anew, self.clean[:0]
        kept = self._kept(active, True, end)
        before = len(self.kept)
        same = torch.equal(kept[:before], self.kept) and not self.moved
        anew = before > 0 and not same
        audio = self._audio(
            kept if anew else kept[before:], 0 if anew else before
        )
        self.kept, self.done, self.spoken = kept, len(kept), True
        self.moved = False
        return anew, audio

    def _kept(self, active, first, end):
        """Kept cells up to the last active one; at the end, with the margin.

        ``first`` says that no active cell came before these.
        """
        speech = self.speech
        where = active.nonzero()
        kept = dilate(active, speech.half_pause, speech.half_pause)
        start, last = int(where[0]), int(where[-1])
        if first:
            kept[: max(0, start - speech.margin_cells)] = False
            kept[max(0, start - speech.margin_cells) : start] = True
        stop = last + 1
        if end:
            stop += speech.margin_cells
            kept[last:stop] = True
        return kept[:stop]

    def _settle(self, active):
        """The first 30 s are over: hold no more than is needed."""
        self.settled = True
        self.kept = self.kept[:0]
        if self.found < LEAST:
            # Active cells may still be too few, so all is decided again
            self.done = 0
            size = SETTLED * SECOND
            cells = CellMeasures(*(value[:size] for value in self.cells))
            self.early = self.clean[: size * self.speech.hop].clone(), cells
            self.found = 0
            self.waiting = [self._decide(active, False)]
        else:
            self._forget()

    def _decide(self, active, end):
        """Decide on the cells after the first 30 s."""
        speech, hop = self.speech, self.speech.hop
        begin = self.done
        known = self.first + len(active)
        new = active[begin - self.first :]
        parts = []
        if new.any():
            if self.spoken:
                # The last active cell may be less than half a pause before
                context = min(speech.half_pause, begin - self.first)
                wide = active[begin - self.first - context :]
                if self.tail is None:
                    kept = self._kept(wide, False, end)[context:]
                else:
                    parts.append(self.tail[: speech.half_pause * hop])
                    kept = self._kept(new, False, end)
            else:
                kept = self._kept(new, True, end)
            parts.append(self._audio(kept, begin))
            self.done = begin + len(kept)
            self.spoken, self.tail = True, None
            self.found = min(LEAST, self.found + int(new.sum()))
        elif end and self.spoken:
            tail = self._tail() if self.tail is None else self.tail
            parts.append(tail[: speech.margin_cells * hop])
        room = max(speech.half_pause, speech.margin_cells)
        if not end and known - self.done > 2 * room:
            if self.spoken and self.tail is None:
                self.tail = self._tail().clone()
            self.done = known - room
        kept = torch.cat([self.clean[:0], *self.waiting, *parts])
        self.waiting = []
        if self.found < LEAST:
            self.waiting, kept = [kept], kept[:0]
        else:
            self.early = None
        self._forget()
        return kept

    def _tail(self):
        """Audio after the last active cell, as long as a pause may be."""
        speech = self.speech
        room = max(speech.half_pause, speech.margin_cells) * speech.hop
        start = (self.done - self.start) * speech.hop
        return self.clean[start : start + room]

    def _forget(self):
        """Drop audio and cells that no later decision reads."""
        measured = self.first + len(self.cells.level)
        start = max(self.start, min(self.done, measured - BEFORE))
        self.clean = self.clean[
            (start - self.start) * self.speech.hop :
        ].clone()
        self.start = start
        first = (self.done // SECOND - SETTLED - 2) * SECOND
        if first > self.first:
            drop = first - self.first
            self.cells = CellMeasures(*(v[drop:].clone() for v in self.cells))
            self.first = first

    def _without_voice(self):
        """Loud part of the first 30 s, for audio that holds no voice."""
        audio, cells = self.early or (self.clean, self.cells)
        size = SETTLED * SECOND
        cells = CellMeasures(*(value[:size] for value in cells))
        kept = self.speech.frame(self.speech.loud(cells))
        spans = self.speech.spans(kept, len(audio), self.lead)
        return torch.cat([audio[start:stop] for start, stop in spans])
