"""The DS-LSTM recurrence as two Triton kernels, one for each direction.

A program keeps the weights of ``UNITS`` hidden units in shared memory and runs
these units through all steps, for ``BLOCK_B`` items of a batch. The programs of
a group hold all units of the same items. A step needs what all of them computed
in the step before, so they exchange it through memory: hidden states in the
forward pass; in the backward pass their shares of the hidden states' gradients,
which each reader adds up in the same order. All programs of a launch must be on
the GPU at once, which a cooperative launch guarantees.

Why a program sees what the others wrote: ``tl.debug_barrier`` is bar.sync, so
that all writes of a program's threads precede the count that one of them then
adds to the group's counter, with release. A reader's count has acquire, and
comes before its loads, which ask the L2 cache (.cg): a multiprocessor's own
cache may hold an older value. Shares of gradients alternate between two places:
who writes the place of two steps before knows from the counter that everybody
has finished the step between, and so has read it.

Without a GPU the interpreter runs one program after the other; then a launch is
one step, and nobody waits. Hence ``begin`` and ``end``. The formulas are those
of ``kernel_torch``; offsets of whole steps are 64 bits wide. Imported when
``kernel_triton`` first runs.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _tanh(x):
    """Compute tanh to a few units in the last place; triton.language has none."""
    square = x * x
    small = -17 / 315 + square * (62 / 2835)
    small = x + x * square * (-1 / 3 + square * (2 / 15 + square * small))
    return tl.where(tl.abs(x) < 0.25, small, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def _load(pointer, mask):
    """Load values as float32, and 0 outside the mask."""
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit
def _wait(ready, target):
    """Wait until the group's counter has reached a number."""
    seen = tl.atomic_add(ready, 0, sem="acquire")
    while seen < target:
        seen = tl.atomic_add(ready, 0, sem="acquire")


@triton.jit
def _finish(ready):
    """Count one program's step, after all that its threads have written."""
    tl.debug_barrier()
    tl.atomic_add(ready, 1, sem="release")


@triton.jit
def _items(
    counts, tile, batch, time, RAGGED: tl.constexpr, BLOCK_B: tl.constexpr
):
    """Items of a group and their numbers of steps; 0 past the batch."""
    rows = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    if RAGGED:
        count = tl.load(counts + rows, mask=rows < batch, other=0)
        count = count.to(tl.int32)
    else:
        count = tl.where(rows < batch, time, 0)
    return rows[:, None], count[:, None]


@triton.jit
def _columns(
    weight, unit, first, UNITS: tl.constexpr, K: tl.constexpr, H: tl.constexpr
):
    """Load weights [K, 8 * UNITS]: for each unit its six blocks, and two of 0."""
    column = tl.arange(0, 8 * UNITS)
    unit = unit + column // 8
    inner = first + tl.arange(0, K)
    mask = (unit < H) & (column % 8 < 6)
    at = ((column % 8) * H + unit)[None, :] * H + inner[:, None]
    return tl.load(
        weight + at, mask=(inner < H)[:, None] & mask[None, :], other=0
    )


@triton.jit
def _states(states, first, rows, batch, K: tl.constexpr, H: tl.constexpr):
    """Load hidden states [BLOCK_B, K] that other programs wrote."""
    inner = first + tl.arange(0, K)
    return tl.load(
        states + rows * H + inner[None, :],
        mask=(rows < batch) & (inner < H)[None, :],
        other=0,
        cache_modifier=".cg",
    )


@triton.jit(do_not_specialize=["batch", "time", "first_group", "begin", "end"])
def forward(
    projected: tl.tensor, weight: tl.tensor, counts: tl.tensor,
    states: tl.tensor, h_n: tl.tensor, c_n: tl.tensor,
    act: tl.tensor, cells: tl.tensor, ready: tl.tensor,
    batch: tl.tensor, time: tl.tensor, first_group: tl.tensor,
    begin: tl.tensor, end: tl.tensor,
    H: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    SLICES: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    K1: tl.constexpr, K2: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Run steps ``begin`` to ``end`` of a group's items, for a program's units.

    Arguments
    ---------
    projected, weight : pointer, [time, batch, 6 * H], [6 * H, H]
        Result of ``project_inputs``, and the recurrent weight, of one type.
    counts : pointer, int64 [batch], or None
        Valid steps of each item; None unless ``RAGGED``.
    states : pointer, [time + 1, batch, H]
        Hidden states; the first is read, the others are written up to the
        last step of the group's longest item.
    h_n, c_n : pointer, [batch, H]
        Written: state after an item's last step, unless it has none.
    act : pointer, [time, batch, 6 * H]
        Written if ``KEEP``: gates and candidates.
    cells : pointer, float32 [slots, batch, H]
        Cell states. If ``KEEP``, time + 1 slots, of which the first is read and
        the others are written; else one slot, which is updated.
    ready : pointer, int32 [groups]
        Counter of each group, 0 before the first step.
    batch, time, first_group, begin, end
        Items and steps; group of the first program; the steps to run.
    H, RAGGED, KEEP
        Hidden units; whether there are counts; whether a backward pass follows.
    SLICES, BLOCK_B, UNITS
        Programs of a group; its items; units of a program.
    K1, K2, PRECISION
        Hidden states at a time, three times and last; ``input_precision``.
    """
    group = first_group + tl.program_id(0) // SLICES
    unit = (tl.program_id(0) % SLICES) * UNITS
    rows, count = _items(counts, group, batch, time, RAGGED, BLOCK_B)
    units = (unit + tl.arange(0, UNITS))[None, :]
    here = (rows < batch) & (units < H)
    stride = batch.to(tl.int64) * H
    at = rows * H + units
    w0 = _columns(weight, unit, 0, UNITS, K1, H)
    w1 = _columns(weight, unit, K1, UNITS, K1, H)
    w2 = _columns(weight, unit, 2 * K1, UNITS, K1, H)
    w3 = _columns(weight, unit, 3 * K1, UNITS, K2, H)
    stop = min(end, tl.max(count))
    slot = cells
    if KEEP:
        slot += stride * begin
    c = _load(slot + at, here)
    for t in range(begin, stop):
        z = projected + 6 * stride * t + rows * 6 * H + units
        f = _load(z, here)
        i_T = _load(z + H, here)
        i_F = _load(z + 2 * H, here)
        o = _load(z + 3 * H, here)
        C_T = _load(z + 4 * H, here)
        C_F = _load(z + 5 * H, here)
        _wait(ready + group, t * SLICES)
        before = states + stride * t
        h = _states(before, 0, rows, batch, K1, H)
        u = tl.dot(h, w0, input_precision=PRECISION)
        h = _states(before, K1, rows, batch, K1, H)
        u = tl.dot(h, w1, u, input_precision=PRECISION)
        h = _states(before, 2 * K1, rows, batch, K1, H)
        u = tl.dot(h, w2, u, input_precision=PRECISION)
        h = _states(before, 3 * K1, rows, batch, K2, H)
        u = tl.dot(h, w3, u, input_precision=PRECISION)
        # Blocks 0 to 7 of a unit are neighbours: halve three times
        even, odd = tl.split(tl.reshape(u, [BLOCK_B, UNITS, 2, 2, 2]))
        u_04, u_26 = tl.split(even)
        u_15, u_37 = tl.split(odd)
        h_f, h_T = tl.split(u_04)
        h_iT, h_F = tl.split(u_15)
        h_iF, _ = tl.split(u_26)
        h_o, _ = tl.split(u_37)
        f, i_T = tl.sigmoid(f + h_f), tl.sigmoid(i_T + h_iT)
        i_F, o = tl.sigmoid(i_F + h_iF), tl.sigmoid(o + h_o)
        C_T, C_F = _tanh(C_T + h_T), _tanh(C_F + h_F)
        c = f * c + i_T * C_T + i_F * C_F
        h = o * _tanh(c)
        out = tl.where(t < count, h, 0.0)
        tl.store(states + stride * (t + 1) + at, out, mask=here)
        _finish(ready + group)
        # Only later kernels read the rest
        last = here & (t + 1 == count)
        tl.store(h_n + at, h, mask=last)
        tl.store(c_n + at, c, mask=last)
        if KEEP:
            tl.store(cells + stride * (t + 1) + at, c, mask=here)
            a = act + 6 * stride * t + rows * 6 * H + units
            tl.store(a, f, mask=here)
            tl.store(a + H, i_T, mask=here)
            tl.store(a + 2 * H, i_F, mask=here)
            tl.store(a + 3 * H, o, mask=here)
            tl.store(a + 4 * H, C_T, mask=here)
            tl.store(a + 5 * H, C_F, mask=here)
    if not KEEP:
        if begin < stop:
            tl.store(cells + at, c, mask=here)


@triton.jit
def _rows(
    weight, unit, first, WIDE: tl.constexpr, BLOCKS: tl.constexpr,
    UNITS: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Load weights [BLOCKS * UNITS, WIDE]: each unit's blocks from ``first`` on."""
    row = tl.arange(0, BLOCKS * UNITS)
    unit = unit + row // BLOCKS
    inner = tl.arange(0, WIDE)
    at = ((first + row % BLOCKS) * H + unit)[:, None] * H + inner[None, :]
    mask = (unit < H)[:, None] & (inner < H)[None, :]
    return tl.load(weight + at, mask=mask, other=0)


@triton.jit(do_not_specialize=["batch", "time", "first_group", "begin", "end"])
def backward(
    grad_states: tl.tensor, grad_h: tl.tensor, weight: tl.tensor,
    counts: tl.tensor, act: tl.tensor, cells: tl.tensor,
    grad_z: tl.tensor, grad_h0: tl.tensor, grad_c: tl.tensor,
    shares: tl.tensor, ready: tl.tensor,
    batch: tl.tensor, time: tl.tensor, first_group: tl.tensor,
    begin: tl.tensor, end: tl.tensor,
    H: tl.constexpr, RAGGED: tl.constexpr, SLICES: tl.constexpr,
    BLOCK_B: tl.constexpr, UNITS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Run steps backwards, ``begin`` steps before the group's last; see ``forward``.

    grad_states, of all hidden states, and grad_h, of ``h_n``, are read. grad_z,
    the gradient of ``projected``, is written up to the last step of the group's
    longest item. grad_c, float32, holds the gradient of ``c_n`` and then that of
    the initial cell state. grad_h0 is written by one more step, after the first.
    Shares, float32 [2, SLICES, batch, H], is memory. ``WIDE`` is a power
    of two not below H.
    """
    group = first_group + tl.program_id(0) // SLICES
    mine = tl.program_id(0) % SLICES
    unit = mine * UNITS
    rows, count = _items(counts, group, batch, time, RAGGED, BLOCK_B)
    units = (unit + tl.arange(0, UNITS))[None, :]
    here = (rows < batch) & (units < H)
    stride = batch.to(tl.int64) * H
    at = rows * H + units
    w_gates = _rows(weight, unit, 0, WIDE, 4, UNITS, H)
    w_both = _rows(weight, unit, 4, WIDE, 2, UNITS, H)
    wide = tl.arange(0, WIDE)[None, :]
    inside = (rows < batch) & (wide < H)
    steps = tl.max(count)
    stop = min(end, steps + 1)
    dc = _load(grad_c + at, here)
    last = _load(grad_h + at, here)
    for back in range(begin, stop):
        t = steps - 1 - back
        valid = here & (t < count) & (t >= 0)
        a = act + 6 * stride * t + rows * 6 * H + units
        f = _load(a, valid)
        i_T = _load(a + H, valid)
        i_F = _load(a + 2 * H, valid)
        o = _load(a + 3 * H, valid)
        C_T = _load(a + 4 * H, valid)
        C_F = _load(a + 5 * H, valid)
        c = _load(cells + stride * t + at, valid)
        tanh_c = _tanh(_load(cells + stride * (t + 1) + at, valid))
        dout = _load(grad_states + stride * (t + 1) + at, valid)
        # No step comes after the last
        _wait(ready + group, back * SLICES)
        theirs = shares + stride * SLICES * ((back + 1) % 2) + at
        dh = tl.zeros([BLOCK_B, UNITS], tl.float32)
        for part in tl.static_range(SLICES):
            dh += tl.load(
                theirs + stride * part,
                mask=here & (back > 0),
                other=0,
                cache_modifier=".cg",
            )
        # At and after an item's last step: the gradient of its final state
        dh = tl.where(t + 1 < count, dh, last) + dout
        if t < 0:
            tl.store(grad_h0 + at, dh, mask=here)
        else:
            # At padding all that was just loaded is 0, and so is dz
            dc += dh * o * (1 - tanh_c * tanh_c)
            d_f, d_iT = dc * c * f * (1 - f), dc * C_T * i_T * (1 - i_T)
            d_iF, d_o = dc * C_F * i_F * (1 - i_F), dh * tanh_c * o * (1 - o)
            d_T, d_F = dc * i_T * (1 - C_T * C_T), dc * i_F * (1 - C_F * C_F)
            dc = tl.where(t < count, dc * f, dc)
            gates = tl.join(tl.join(d_f, d_iF), tl.join(d_iT, d_o))
            gates = tl.reshape(gates, [BLOCK_B, 4 * UNITS])
            both = tl.reshape(tl.join(d_T, d_F), [BLOCK_B, 2 * UNITS])
            share = tl.dot(
                gates.to(w_gates.dtype), w_gates, input_precision=PRECISION
            )
            share = tl.dot(
                both.to(w_both.dtype), w_both, share, input_precision=PRECISION
            )
            own = shares + stride * (SLICES * (back % 2) + mine)
            tl.store(own + rows * H + wide, share, mask=inside)
            _finish(ready + group)
            z = grad_z + 6 * stride * t + rows * 6 * H + units
            tl.store(z, d_f, mask=here)
            tl.store(z + H, d_iT, mask=here)
            tl.store(z + 2 * H, d_iF, mask=here)
            tl.store(z + 3 * H, d_o, mask=here)
            tl.store(z + 4 * H, d_T, mask=here)
            tl.store(z + 5 * H, d_F, mask=here)
    if begin < min(end, steps):
        tl.store(grad_c + at, dc, mask=here)
