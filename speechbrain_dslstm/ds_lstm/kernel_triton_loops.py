"""The DS-LSTM recurrence as two Triton kernels, one for each direction.

A program runs ``BLOCK_B`` items of a batch through all steps. Each unit of a
step needs all of h_{t-1}, which does not fit the registers beside six gates.
So a step proceeds by blocks of ``BLOCK_U`` units and writes its results to
memory for the next step: hidden states in the forward pass, the gradients of
the activations in the backward pass. Every step reads the weights from the L2
cache.

Why the next step sees these writes: a program is one thread block, on one
multiprocessor. ``tl.debug_barrier`` is bar.sync: every write to global memory
that a thread of the block made before it is then visible to all of them, and
no later load moves before it; the loads of the inner loop, which run ahead as
cp.async, begin with that loop. No program reads what another one writes.
Between two barriers no address is both read and written, not even by the same
element of a tile: where a tile is smaller than the block, several threads hold
one element, and slow threads would read values that fast ones have written. So
cell states and their gradients alternate between slots. The tests check all
this by recording addresses.

The formulas are those of ``kernel_torch``; offsets of whole steps are 64 bits
wide. Imported when ``kernel_triton`` first runs.
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
def _items(counts, batch, time, RAGGED: tl.constexpr, BLOCK_B: tl.constexpr):
    """Items of this program and their numbers of steps; 0 past the batch."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    if RAGGED:
        count = tl.load(counts + rows, mask=rows < batch, other=0)
        count = count.to(tl.int32)
    else:
        count = tl.where(rows < batch, time, 0)
    return rows[:, None], count[:, None]


@triton.jit
def _weights(weight, gate, units, inner, H: tl.constexpr):
    """Load a tile of a gate's weights, transposed: [inner, units]."""
    mask = (inner < H)[:, None] & (units < H)[None, :]
    at = (gate * H + units)[None, :] * H + inner[:, None]
    return tl.load(weight + at, mask=mask, other=0)


@triton.jit
def _load(pointer, mask):
    """Load values as float32, and 0 outside the mask."""
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit(do_not_specialize=["batch", "time", "slots"])
def forward(
    projected: tl.tensor, weight: tl.tensor, counts: tl.tensor,
    states: tl.tensor, h_n: tl.tensor, c_n: tl.tensor,
    act: tl.tensor, cells: tl.tensor,
    batch: tl.tensor, time: tl.tensor, slots: tl.tensor,
    H: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """Run all steps of a block of items.

    Arguments
    ---------
    projected, weight : pointer, [time, batch, 6 * H], [6 * H, H]
        Result of ``project_inputs``, and the recurrent weight, of one type.
    counts : pointer, int64 [batch], or None
        Valid steps of each item; None unless ``RAGGED``.
    states : pointer, [time + 1, batch, H]
        Hidden states; the first is read, the others are written up to the
        last step of the block's longest item.
    h_n, c_n : pointer, [batch, H]
        Written: state after an item's last step, unless it has none.
    act : pointer, [time, batch, 6 * H]
        Written if ``KEEP``: gates and candidates.
    cells : pointer, float32 [slots, batch, H]
        Cell states, step t in slot t modulo ``slots``; the first is read, the
        others are written.
    batch, time, slots
        Items, steps, and slots of ``cells``: time + 1 if ``KEEP``, else 2.
    H, RAGGED, KEEP
        Hidden units; whether there are counts; whether a backward pass follows.
    BLOCK_B, BLOCK_U, BLOCK_K
        Items of a program; units and terms of the recurrent product at a time.
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
    grad_states: tl.tensor, grad_h: tl.tensor, weight: tl.tensor,
    counts: tl.tensor, act: tl.tensor, cells: tl.tensor,
    grad_z: tl.tensor, grad_h0: tl.tensor, grad_c0: tl.tensor,
    slots: tl.tensor, batch: tl.tensor, time: tl.tensor,
    H: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """Run all steps of a block of items backwards; see ``forward``.

    grad_states, of all hidden states, and grad_h, of ``h_n``, are read. grad_z,
    the gradient of ``projected``, is written up to the last step of the block's
    longest item; grad_h0 and grad_c0, of the initial state, are written. Slots,
    float32 [2, batch, H], is memory whose first half holds the gradient of
    ``c_n``.
    """
    rows, count = _items(counts, batch, time, RAGGED, BLOCK_B)
    stride = batch.to(tl.int64) * H
    steps = tl.max(count)
    # One more iteration, for the gradient of the initial state
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
            # At and after an item's last step: the gradient of its final state
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
