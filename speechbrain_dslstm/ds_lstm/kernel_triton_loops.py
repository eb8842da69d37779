r"""The DS-LSTM recurrence as two Triton kernels, one for each direction.

A program takes ``BLOCK_B`` items of a batch through all steps. A step needs
all of h_{t-1} for each of its units, more than fits the registers next to six
gates, so it goes by blocks of ``BLOCK_U`` units, and what one step writes to
memory the next one reads: hidden states on the way forward, the gradients of
the gates on the way back. The weights come from the L2 cache at every step.

Why the next step sees them: a program is one thread block, on one
multiprocessor. ``tl.debug_barrier`` is bar.sync, after which every write to
global memory that a thread of the block made before it is visible to all of
them, and no load behind it moves before it; those of the inner loop, which
run ahead as cp.async, begin with that loop. No program reads what another one
writes. Between two barriers nothing is read that is also written, not even by
the same element of a tile: several threads hold one element where a tile is
smaller than the block, and the slow would read what the fast have written.
So cell states and their gradients alternate between slots. The tests see to
all this by recording addresses.

Imported by ``kernel_triton`` when it is first called: triton is missing on
some platforms and takes a while to import. The formulas are those of
``kernel_fused``; offsets of whole steps are 64 bits wide.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _tanh(x):
    """Tanh to a few units in the last place; triton.language has none."""
    square = x * x
    small = -17 / 315 + square * (62 / 2835)
    small = x + x * square * (-1 / 3 + square * (2 / 15 + square * small))
    return tl.where(tl.abs(x) < 0.25, small, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def _items(counts, batch, time, RAGGED: tl.constexpr, BLOCK_B: tl.constexpr):
    """Rows of this program, and how many steps each has; 0 past the batch."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    if RAGGED:
        count = tl.load(counts + rows, mask=rows < batch, other=0)
        count = count.to(tl.int32)
    else:
        count = tl.where(rows < batch, time, 0)
    return rows[:, None], count[:, None]


@triton.jit
def _weights(weight, gate, units, inner, H: tl.constexpr):
    """A transposed tile of one gate's block: [inner, units]."""
    mask = (inner < H)[:, None] & (units < H)[None, :]
    at = (gate * H + units)[None, :] * H + inner[:, None]
    return tl.load(weight + at, mask=mask, other=0)


@triton.jit
def _load(pointer, mask):
    """Wide enough to compute with."""
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit(do_not_specialize=["batch", "time", "slots"])
def forward(
    projected, weight, counts, states, h_n, c_n, act, cells,
    batch, time, slots,
    H: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All steps of a block of items.

    Arguments
    ---------
    projected : pointer, [time, batch, 6 * H]
        What ``project_inputs`` returns, in the type of the weights.
    weight : pointer, [6 * H, H]
        Recurrent weights.
    counts : pointer or None, int64, [batch]
        Valid steps of each item; None unless ``RAGGED``.
    states : pointer, [time + 1, batch, H]
        Hidden states; the first is read, the others written as far as an
        item of the block has a step.
    h_n : pointer, [batch, H]
        Hidden state after an item's last step; untouched if it has none.
    c_n : pointer, [batch, H]
        Cell state after the same.
    act : pointer, [time, batch, 6 * H]
        Gates and candidates, written if ``KEEP``.
    cells : pointer, float32, [slots, batch, H]
        Cell states, step t in slot t modulo ``slots``; the first is read.
    batch : int
        Items.
    time : int
        Steps.
    slots : int
        ``time`` + 1, or 2 if nothing is kept.
    H : int
        Hidden units.
    RAGGED : bool
        Whether there are lengths.
    KEEP : bool
        Whether a way back follows.
    BLOCK_B : int
        Items of a program.
    BLOCK_U : int
        Units at a time.
    BLOCK_K : int
        Terms of the recurrent product at a time.

    Example
    -------
    >>> forward.arg_names[:3]
    ['projected', 'weight', 'counts']
    """
    rows, count = _items(counts, batch, time, RAGGED, BLOCK_B)
    stride = batch.to(tl.int64) * H
    for t in range(tl.max(count)):
        z = projected + 6 * stride * t + rows * 6 * H
        for start in range(0, H, BLOCK_U):
            units = start + tl.arange(0, BLOCK_U)
            here = (rows < batch) & (units < H)[None, :]
            at = units[None, :]
            f = _load(z + at, here)
            i_T = _load(z + at + H, here)
            i_F = _load(z + at + 2 * H, here)
            o = _load(z + at + 3 * H, here)
            C_T = _load(z + at + 4 * H, here)
            C_F = _load(z + at + 5 * H, here)
            for first in range(0, H, BLOCK_K):
                inner = first + tl.arange(0, BLOCK_K)
                h = tl.load(
                    states + stride * t + rows * H + inner[None, :],
                    mask=(rows < batch) & (inner < H)[None, :],
                    other=0,
                )
                w = _weights(weight, 0, units, inner, H)
                f = tl.dot(h, w, f, input_precision="ieee")
                w = _weights(weight, 1, units, inner, H)
                i_T = tl.dot(h, w, i_T, input_precision="ieee")
                w = _weights(weight, 2, units, inner, H)
                i_F = tl.dot(h, w, i_F, input_precision="ieee")
                w = _weights(weight, 3, units, inner, H)
                o = tl.dot(h, w, o, input_precision="ieee")
                w = _weights(weight, 4, units, inner, H)
                C_T = tl.dot(h, w, C_T, input_precision="ieee")
                w = _weights(weight, 5, units, inner, H)
                C_F = tl.dot(h, w, C_F, input_precision="ieee")
            f, i_T = tl.sigmoid(f), tl.sigmoid(i_T)
            i_F, o = tl.sigmoid(i_F), tl.sigmoid(o)
            C_T, C_F = _tanh(C_T), _tanh(C_F)
            at = rows * H + units[None, :]
            c = _load(cells + stride * (t % slots) + at, here)
            c = f * c + i_T * C_T + i_F * C_F
            h = o * _tanh(c)
            tl.store(cells + stride * ((t + 1) % slots) + at, c, mask=here)
            out = tl.where(t < count, h, 0.0)
            tl.store(states + stride * (t + 1) + at, out, mask=here)
            last = here & (t + 1 == count)
            tl.store(h_n + at, h, mask=last)
            tl.store(c_n + at, c, mask=last)
            if KEEP:
                a = act + 6 * stride * t + rows * 6 * H + units[None, :]
                tl.store(a, f, mask=here)
                tl.store(a + H, i_T, mask=here)
                tl.store(a + 2 * H, i_F, mask=here)
                tl.store(a + 3 * H, o, mask=here)
                tl.store(a + 4 * H, C_T, mask=here)
                tl.store(a + 5 * H, C_F, mask=here)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["batch", "time"])
def backward(
    grad_states, grad_h, weight, counts, act, cells,
    grad_z, grad_h0, grad_c0, slots, batch, time,
    H: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All steps of a block of items, backwards.

    Arguments
    ---------
    grad_states : pointer, [time + 1, batch, H]
        Gradient of the hidden states, the initial one among them.
    grad_h : pointer, [batch, H]
        Gradient of the hidden state after an item's last step.
    weight : pointer, [6 * H, H]
        Recurrent weights.
    counts : pointer or None, int64, [batch]
        Valid steps of each item; None unless ``RAGGED``.
    act : pointer, [time, batch, 6 * H]
        Gates and candidates.
    cells : pointer, float32, [time + 1, batch, H]
        Cell states.
    grad_z : pointer, [time, batch, 6 * H]
        Gradient of ``projected``, written as far as an item of the block has
        a step.
    grad_h0 : pointer, [batch, H]
        Gradient of the initial hidden state, written.
    grad_c0 : pointer, [batch, H]
        Gradient of the initial cell state, written.
    slots : pointer, float32, [2, batch, H]
        Memory; the first slot holds the gradient of the last cell state.
    batch : int
        Items.
    time : int
        Steps.
    H : int
        Hidden units.
    RAGGED : bool
        Whether there are lengths.
    BLOCK_B : int
        Items of a program.
    BLOCK_U : int
        Units at a time.
    BLOCK_K : int
        Terms of the product with the weights at a time.

    Example
    -------
    >>> backward.arg_names[:3]
    ['grad_states', 'grad_h', 'weight']
    """
    rows, count = _items(counts, batch, time, RAGGED, BLOCK_B)
    stride = batch.to(tl.int64) * H
    steps = tl.max(count)
    # After the first step comes one for what flows into the initial state
    for back in range(steps + 1):
        t = steps - 1 - back
        for start in range(0, H, BLOCK_U):
            units = start + tl.arange(0, BLOCK_U)
            here = (rows < batch) & (units < H)[None, :]
            at = rows * H + units[None, :]
            dh = tl.zeros([BLOCK_B, BLOCK_U], tl.float32)
            # No step comes after the last
            for first in range(0, min(back, 1) * 6 * H, BLOCK_K):
                inner = first + tl.arange(0, BLOCK_K)
                known = (inner < 6 * H)[None, :]
                z = grad_z + 6 * stride * (t + 1) + rows * 6 * H
                z = tl.load(
                    z + inner[None, :], mask=(rows < batch) & known, other=0
                )
                w = tl.load(
                    weight + inner[:, None] * H + units[None, :],
                    mask=(inner < 6 * H)[:, None] & (units < H)[None, :],
                    other=0,
                )
                dh = tl.dot(z, w, dh, input_precision="ieee")
            # Until an item's last step nothing but its final state's gradient
            dh = tl.where(t + 1 < count, dh, _load(grad_h + at, here))
            valid = here & (t < count)
            dh += _load(grad_states + stride * (t + 1) + at, valid)
            dc = _load(slots + stride * (back % 2) + at, here)
            if t < 0:
                tl.store(grad_h0 + at, dh, mask=here)
                tl.store(grad_c0 + at, dc, mask=here)
            else:
                a = act + 6 * stride * t + rows * 6 * H + units[None, :]
                f = _load(a, valid)
                i_T = _load(a + H, valid)
                i_F = _load(a + 2 * H, valid)
                o = _load(a + 3 * H, valid)
                C_T = _load(a + 4 * H, valid)
                C_F = _load(a + 5 * H, valid)
                c = _load(cells + stride * t + at, valid)
                tanh_c = _tanh(_load(cells + stride * (t + 1) + at, valid))
                # At padding all that was just loaded is 0, and so is dz
                dc += dh * o * (1 - tanh_c * tanh_c)
                z = grad_z + 6 * stride * t + rows * 6 * H + units[None, :]
                tl.store(z, dc * c * f * (1 - f), mask=here)
                tl.store(z + H, dc * C_T * i_T * (1 - i_T), mask=here)
                tl.store(z + 2 * H, dc * C_F * i_F * (1 - i_F), mask=here)
                tl.store(z + 3 * H, dh * tanh_c * o * (1 - o), mask=here)
                tl.store(z + 4 * H, dc * i_T * (1 - C_T * C_T), mask=here)
                tl.store(z + 5 * H, dc * i_F * (1 - C_F * C_F), mask=here)
                dc = tl.where(t < count, dc * f, dc)
                slot = slots + stride * ((back + 1) % 2)
                tl.store(slot + at, dc, mask=here)
        tl.debug_barrier()
