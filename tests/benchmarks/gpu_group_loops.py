"""The DS-LSTM recurrence on a GPU by groups of programs, a candidate kernel.

A program keeps the weights of a few units and runs them through all steps, for
one block of items; the programs of a block exchange hidden states (backwards:
gradients of the activations) through memory and wait for each other at every
step, so that all of them must be on the GPU at once: a cooperative launch.
"""

import triton
import triton.language as tl

__all__ = ["group_backward", "group_forward", "pointwise"]


@triton.jit
def _tanh(x):
    square = x * x
    small = -17 / 315 + square * (62 / 2835)
    small = x + x * square * (-1 / 3 + square * (2 / 15 + square * small))
    return tl.where(tl.abs(x) < 0.25, small, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def _load(pointer, mask):
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit
def _wait(counter, target):
    """Wait until so many programs have finished the step before."""
    seen = tl.atomic_add(counter, 0, sem="acquire")
    while seen < target:
        seen = tl.atomic_add(counter, 0, sem="acquire")


@triton.jit
def _count(counts, rows, batch, time, RAGGED: tl.constexpr):
    if RAGGED:
        count = tl.load(counts + rows, mask=rows < batch, other=0).to(tl.int32)
    else:
        count = tl.where(rows < batch, time, 0)
    return count


@triton.jit
def _columns(
    weight, unit, first, UNITS: tl.constexpr, K: tl.constexpr, H: tl.constexpr
):
    """Weights [K, 8 * units]: six neighbouring columns for each unit, two of 0."""
    column = tl.arange(0, 8 * UNITS)
    unit = unit + column // 8
    inner = first + tl.arange(0, K)
    row = (column % 8) * H + unit
    mask = (unit < H) & (column % 8 < 6)
    return tl.load(
        weight + row[None, :] * H + inner[:, None],
        mask=(inner < H)[:, None] & mask[None, :],
        other=0,
    )


@triton.jit
def _states(h, first, rows, batch, K: tl.constexpr, H: tl.constexpr):
    """Hidden states [items, K] of a step, as other programs wrote them."""
    inner = first + tl.arange(0, K)
    return tl.load(
        h + rows * H + inner[None, :],
        mask=(rows < batch) & (inner < H)[None, :],
        other=0,
        cache_modifier=".cg",
    )


@triton.jit(do_not_specialize=["batch", "time", "first_tile"])
def group_forward(
    projected, weight, counts, states, h_n, c_n, act, cells, c0, ready,
    batch, time, first_tile,
    H: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    SLICES: tl.constexpr, BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    K1: tl.constexpr, K2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = first_tile + tl.program_id(0) // SLICES
    rows = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    units = (tl.program_id(0) % SLICES) * UNITS + tl.arange(0, UNITS)
    count = _count(counts, rows, batch, time, RAGGED)
    steps = tl.max(count)
    count, rows = count[:, None], rows[:, None]
    here = (rows < batch) & (units < H)[None, :]
    stride = batch.to(tl.int64) * H
    at = rows * H + units[None, :]
    first = (tl.program_id(0) % SLICES) * UNITS
    w0 = _columns(weight, first, 0, UNITS, K1, H)
    w1 = _columns(weight, first, K1, UNITS, K1, H)
    w2 = _columns(weight, first, 2 * K1, UNITS, K1, H)
    w3 = _columns(weight, first, 3 * K1, UNITS, K2, H)
    c = _load(c0 + at, here)
    for t in range(steps):
        z = projected + 6 * stride * t + rows * 6 * H + units[None, :]
        f = _load(z, here)
        i_T = _load(z + H, here)
        i_F = _load(z + 2 * H, here)
        o = _load(z + 3 * H, here)
        C_T = _load(z + 4 * H, here)
        C_F = _load(z + 5 * H, here)
        _wait(ready + tile, t * SLICES)
        h = states + stride * t
        u = tl.dot(
            _states(h, 0, rows, batch, K1, H), w0, input_precision=PRECISION
        )
        u = tl.dot(
            _states(h, K1, rows, batch, K1, H), w1, u, input_precision=PRECISION
        )
        u = tl.dot(
            _states(h, 2 * K1, rows, batch, K1, H),
            w2,
            u,
            input_precision=PRECISION,
        )
        u = tl.dot(
            _states(h, 3 * K1, rows, batch, K2, H),
            w3,
            u,
            input_precision=PRECISION,
        )
        even, odd = tl.split(tl.reshape(u, [BLOCK_B, UNITS, 2, 2, 2]))
        u_04, u_26 = tl.split(even)
        u_15, u_37 = tl.split(odd)
        h_f, h_T = tl.split(u_04)
        h_iF, _ = tl.split(u_26)
        h_iT, h_F = tl.split(u_15)
        h_o, _ = tl.split(u_37)
        f, i_T = tl.sigmoid(f + h_f), tl.sigmoid(i_T + h_iT)
        i_F, o = tl.sigmoid(i_F + h_iF), tl.sigmoid(o + h_o)
        C_T, C_F = _tanh(C_T + h_T), _tanh(C_F + h_F)
        c = f * c + i_T * C_T + i_F * C_F
        h = o * _tanh(c)
        out = tl.where(t < count, h, 0.0)
        tl.store(states + stride * (t + 1) + at, out, mask=here)
        tl.debug_barrier()
        tl.atomic_add(ready + tile, 1, sem="release")
        last = here & (t + 1 == count)
        tl.store(h_n + at, h, mask=last)
        tl.store(c_n + at, c, mask=last)
        if KEEP:
            tl.store(cells + stride * (t + 1) + at, c, mask=here)
            a = act + 6 * stride * t + rows * 6 * H + units[None, :]
            tl.store(a, f, mask=here)
            tl.store(a + H, i_T, mask=here)
            tl.store(a + 2 * H, i_F, mask=here)
            tl.store(a + 3 * H, o, mask=here)
            tl.store(a + 4 * H, C_T, mask=here)
            tl.store(a + 5 * H, C_F, mask=here)


@triton.jit
def _part(weight, first, units, K: tl.constexpr, H: tl.constexpr):
    """Rows of the weight, [8, K, units]: eight parts of a sum."""
    part = first + tl.arange(0, 8)[:, None] * K + tl.arange(0, K)[None, :]
    return tl.load(
        weight + part[:, :, None] * H + units[None, None, :],
        mask=(part < 6 * H)[:, :, None] & (units < H)[None, None, :],
        other=0,
    )


@triton.jit
def _terms(z, first, rows, batch, K: tl.constexpr, H: tl.constexpr):
    """Gradients of a step's activations, [8, items, K]."""
    part = first + tl.arange(0, 8)[:, None] * K + tl.arange(0, K)[None, :]
    return tl.load(
        z + rows[None, :, None] * 6 * H + part[:, None, :],
        mask=(rows < batch)[None, :, None] & (part < 6 * H)[:, None, :],
        other=0,
        cache_modifier=".cg",
    )


@triton.jit(do_not_specialize=["batch", "time", "first_tile"])
def group_backward(
    grad_states, grad_h, weight, counts, act, cells, grad_z, grad_h0, grad_c0,
    grad_c, ready, batch, time, first_tile,
    H: tl.constexpr, RAGGED: tl.constexpr, SLICES: tl.constexpr,
    BLOCK_B: tl.constexpr, UNITS: tl.constexpr,
    K1: tl.constexpr, K2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = first_tile + tl.program_id(0) // SLICES
    items = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    units = (tl.program_id(0) % SLICES) * UNITS + tl.arange(0, UNITS)
    count = _count(counts, items, batch, time, RAGGED)
    steps = tl.max(count)
    count, rows = count[:, None], items[:, None]
    here = (rows < batch) & (units < H)[None, :]
    stride = batch.to(tl.int64) * H
    at = rows * H + units[None, :]
    w1 = _part(weight, 0, units, K1, H)
    w2 = _part(weight, 8 * K1, units, K2, H)
    dc = _load(grad_c + at, here)
    last_h = _load(grad_h + at, here)
    for back in range(steps):
        t = steps - 1 - back
        valid = here & (t < count)
        a = act + 6 * stride * t + rows * 6 * H + units[None, :]
        f = _load(a, valid)
        i_T = _load(a + H, valid)
        i_F = _load(a + 2 * H, valid)
        o = _load(a + 3 * H, valid)
        C_T = _load(a + 4 * H, valid)
        C_F = _load(a + 5 * H, valid)
        c = _load(cells + stride * t + at, valid)
        tanh_c = _tanh(_load(cells + stride * (t + 1) + at, valid))
        dout = _load(grad_states + stride * (t + 1) + at, valid)
        dh = last_h
        if back > 0:
            _wait(ready + tile, back * SLICES)
            z = grad_z + 6 * stride * (t + 1)
            one = tl.dot(
                _terms(z, 0, items, batch, K1, H), w1, input_precision=PRECISION
            )
            one = tl.dot(
                _terms(z, 8 * K1, items, batch, K2, H),
                w2,
                one,
                input_precision=PRECISION,
            )
            dh = tl.where(t + 1 < count, tl.sum(one, axis=0), last_h)
        dh += dout
        dc += dh * o * (1 - tanh_c * tanh_c)
        z = grad_z + 6 * stride * t + rows * 6 * H + units[None, :]
        tl.store(z, dc * c * f * (1 - f), mask=here)
        tl.store(z + H, dc * C_T * i_T * (1 - i_T), mask=here)
        tl.store(z + 2 * H, dc * C_F * i_F * (1 - i_F), mask=here)
        tl.store(z + 3 * H, dh * tanh_c * o * (1 - o), mask=here)
        tl.store(z + 4 * H, dc * i_T * (1 - C_T * C_T), mask=here)
        tl.store(z + 5 * H, dc * i_F * (1 - C_F * C_F), mask=here)
        dc = tl.where(t < count, dc * f, dc)
        tl.debug_barrier()
        tl.atomic_add(ready + tile, 1, sem="release")
    # The gradient of the initial state
    _wait(ready + tile, steps * SLICES)
    one = tl.dot(
        _terms(grad_z, 0, items, batch, K1, H), w1, input_precision=PRECISION
    )
    one = tl.dot(
        _terms(grad_z, 8 * K1, items, batch, K2, H),
        w2,
        one,
        input_precision=PRECISION,
    )
    dh = tl.where(count > 0, tl.sum(one, axis=0), last_h)
    tl.store(grad_h0 + at, dh, mask=here)
    tl.store(grad_c0 + at, dc, mask=here)


@triton.jit
def pointwise(
    z, c, h, c_new, size, H: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A step after its product: z [batch, 6 * H] to c and h [batch, H]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    z += (at // H) * 6 * H + at % H
    f, i_T = tl.sigmoid(_load(z, here)), tl.sigmoid(_load(z + H, here))
    i_F, o = (
        tl.sigmoid(_load(z + 2 * H, here)),
        tl.sigmoid(_load(z + 3 * H, here)),
    )
    C_T, C_F = _tanh(_load(z + 4 * H, here)), _tanh(_load(z + 5 * H, here))
    value = f * _load(c + at, here) + i_T * C_T + i_F * C_F
    tl.store(c_new + at, value, mask=here)
    tl.store(h + at, o * _tanh(value), mask=here)
