"""The DS-LSTM's loops over time, compiled by numba; see ``kernel_numba``.

Imported only when that backend runs. Recurrent products use the BLAS in torch,
and so torch's number of threads. All loops are in one file, because numba
recompiles a function only when its own file changes, not when the file of a
function that it calls does.

Symbols as in ``equations``: B items, T steps, H hidden units. Arrays:
act [B, T, 6H] holds the activations f i_T i_F o C_T C_F; part_x and part_y
[B, T, 5H] hold the projections of x, for f i_T i_F o C_T, and of y, for
f i_T i_F o C_F. Each inner loop writes only one or two arrays, because LLVM does
not vectorise loops that write more.
"""

import ctypes
import math

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import ndarray

from speechbrain_dslstm.utils.compiled import compiled

__all__ = ["backward", "forward", "sigmoid", "tanh"]

# With fewer items BLAS is slower than the loops here
FEW = 4
# Norms of the gates: none, over the batch, with running statistics
NO_NORM, BATCH_NORM, FIXED_NORM = 0, 1, 2

# dtype -> mantissa bits, exponent bias, log(2) as a sum whose first term has
# few bits, terms of the exponential series, largest argument
FORMATS = {
    types.float32: (23, 127, 355 / 512, math.log(2) - 355 / 512, 7, 87.0),
    types.float64: (
        *(52, 1023, 6.93147180369123816e-01, 1.90821492927058770e-10),
        *(13, 708.0),
    ),
}


def _external_gemm(name):
    """Make a BLAS function of torch callable from compiled code."""
    try:
        found = getattr(ctypes.CDLL(torch._C.__file__), name)
    except (AttributeError, OSError) as error:
        raise ImportError(f"torch has no {name} to call: {error}") from error
    address = ctypes.cast(found, ctypes.c_void_p).value
    symbol = f"speechbrain_dslstm_{name}"
    llvmlite.binding.add_symbol(symbol, address)
    return types.ExternalFunction(symbol, types.void(*[types.uintp] * 13))


_sgemm, _dgemm = _external_gemm("sgemm_"), _external_gemm("dgemm_")


@intrinsic
def _exponential(typingctx, z):
    """Return p and q with p + q = exp(z): p a power of two, |q| smaller.

    It uses neither a branch nor a table, so LLVM vectorises the loops around it.
    """
    bits, bias, high, low, terms, _ = FORMATS[z]

    def codegen(context, builder, signature, args):
        """Emit the instructions."""
        (argument,) = args
        kind, integer = argument.type, ir.IntType(32 if bits == 23 else 64)

        def constant(value):
            """Make a constant in the type of the argument."""
            value = float(np.float32(value)) if bits == 23 else value
            return ir.Constant(kind, value)

        def multiply_add(a, b, c):
            """Compute a * b + c, which may be rounded once."""
            product = builder.fmul(a, b, flags=("contract",))
            return builder.fadd(product, c, flags=("contract",))

        # Adding this rounds to an integer, which is then in the low bits
        magic = constant(1.5 * 2.0**bits)
        rounded = multiply_add(argument, constant(1 / math.log(2)), magic)
        n = builder.fsub(rounded, magic)
        rest = multiply_add(n, constant(-high), argument)
        rest = multiply_add(n, constant(-low), rest)
        series = constant(1 / math.factorial(terms))
        for k in range(terms - 1, 0, -1):
            term = constant(1 / math.factorial(k))
            series = multiply_add(series, rest, term)
        power = builder.bitcast(rounded, integer)
        power = builder.add(power, ir.Constant(integer, bias))
        power = builder.shl(power, ir.Constant(integer, bits))
        power = builder.bitcast(power, kind)
        small = builder.fmul(builder.fmul(series, rest), power)
        return context.make_tuple(
            builder, signature.return_type, (power, small)
        )

    return types.UniTuple(z, 2)(z), codegen


@intrinsic
def _limit(typingctx, like):
    """Largest argument of ``_exponential``, in the type of ``like``."""
    value = FORMATS[like][-1]
    return like(like), lambda context, builder, signature, args: ir.Constant(
        args[0].type, value
    )


@compiled()
def sigmoid(x: float) -> float:
    """Logistic function of a float32 or float64; NaN stays NaN."""
    z, most = -x, _limit(x)
    z = most if z > most else z
    z = -most if z < -most else z
    power, small = _exponential(z)
    one = type(x)(1)
    return one / (one + (power + small))


@compiled()
def tanh(x: float) -> float:
    """Hyperbolic tangent of a float32 or float64, accurate near 0; NaN stays NaN."""
    z, most = abs(x) + abs(x), _limit(x)
    z = most if z > most else z
    power, small = _exponential(z)
    one = type(x)(1)
    # exp(z) - 1 without cancellation
    e = small + (power - one)
    return math.copysign(e / (e + one + one), x)


@compiled()
def _sigmoids(out, part_x, part_y, recurrent, bias):
    for j in range(out.shape[0]):
        out[j] = sigmoid(part_x[j] + part_y[j] + recurrent[j] + bias[j])


@compiled()
def _tanhs(out, part, recurrent, bias):
    for j in range(out.shape[0]):
        out[j] = tanh(part[j] + recurrent[j] + bias[j])


@compiled()
def _tanh_to(out, z):
    for j in range(z.shape[0]):
        out[j] = tanh(z[j])


@compiled()
def _multiply(out, a):
    for j in range(a.shape[0]):
        out[j] *= a[j]


@compiled()
def _multiply_to(out, a, b):
    for j in range(a.shape[0]):
        out[j] = a[j] * b[j]


@compiled()
def _multiply_add(out, a, b):
    for j in range(a.shape[0]):
        out[j] += a[j] * b[j]


@compiled()
def _add(out, a):
    for j in range(a.shape[0]):
        out[j] += a[j]


@compiled()
def _add_scaled(out, factor, a):
    for j in range(a.shape[0]):
        out[j] += factor * a[j]


@compiled()
def _affine_to(out, a, scale, shift):
    for j in range(scale.shape[0]):
        out[j] = a[j] * scale[j] + shift[j]


@compiled("reassoc")
def _matrix_vector(out, matrix, vector):
    """Compute out = matrix vector, faster than BLAS."""
    for i in range(matrix.shape[0]):
        total = matrix.dtype.type(0)
        for j in range(matrix.shape[1]):
            total += matrix[i, j] * vector[j]
        out[i] = total


@compiled()
def _vector_matrix(out, vector, matrix):
    """Compute out = vector matrix, eight rows at a time, faster than BLAS."""
    out[:] = 0
    eights = vector.shape[0] // 8 * 8
    for k in range(0, eights, 8):
        a, b, c, d = vector[k], vector[k + 1], vector[k + 2], vector[k + 3]
        e, f, g, h = vector[k + 4], vector[k + 5], vector[k + 6], vector[k + 7]
        rows = matrix[k : k + 8]
        for j in range(out.shape[0]):
            out[j] += (
                (a * rows[0, j] + b * rows[1, j])
                + (c * rows[2, j] + d * rows[3, j])
                + (e * rows[4, j] + f * rows[5, j])
                + (g * rows[6, j] + h * rows[7, j])
            )
    for k in range(eights, vector.shape[0]):
        _add_scaled(out, vector[k], matrix[k])


@compiled()
def _gemm(a, b, out, sizes, numbers):
    """Compute out = a b by BLAS, whose column-major view of it is out' = b' a'."""
    s, n = sizes.ctypes.data, numbers.ctypes.data
    letter, one, zero = s + 12, n, n + numbers.itemsize
    a_, b_, out_ = a.ctypes.data, b.ctypes.data, out.ctypes.data
    if numbers.itemsize == 4:
        _sgemm(
            *(letter, letter, s, s + 4, s + 8),
            *(one, b_, s, a_, s + 8, zero, out_, s),
        )
    else:
        _dgemm(
            *(letter, letter, s, s + 4, s + 8),
            *(one, b_, s, a_, s + 8, zero, out_, s),
        )


@compiled()
def _moments(act, valid, mean, variance):
    """Mean and biased variance of the gates of a step's valid items."""
    width, n = mean.shape[0], 0
    mean[:] = 0
    variance[:] = 0
    for b in range(act.shape[0]):
        if valid[b]:
            n += 1
            _add(mean, act[b, :width])
    for j in range(width):
        mean[j] /= max(n, 1)
    for b in range(act.shape[0]):
        if valid[b]:
            row = act[b]
            for j in range(width):
                variance[j] += (row[j] - mean[j]) ** 2
    for j in range(width):
        variance[j] /= max(n, 1)


@compiled()
def forward(
    part_x: ndarray, part_y: ndarray, weight: ndarray, bias: ndarray,
    h: ndarray, c: ndarray, counts: ndarray, sizes: ndarray, numbers: ndarray,
    out: ndarray, act: ndarray, h_before: ndarray, c_all: ndarray,
    norm: int, eps: float, moments: ndarray,
    norm_weight: ndarray, norm_bias: ndarray,
) -> None:  # fmt: skip
    """Run all steps, writing into the given arrays.

    Arguments
    ---------
    part_x, part_y : [B, T, 5H]
        Projections of x and of y.
    weight, bias : [H, 6H], [6H]
        Recurrent weight, transposed (with fewer than ``FEW`` items also
        [6H, H], as it is), and bias.
    h, c : [B, H]
        Initial state, overwritten by the last state.
    counts : int64 [B]
        Valid steps of each item.
    sizes, numbers : int32 [4], [2]
        For BLAS: 6H, B, H and the letter N; 1 and 0.
    out : [B, T, H]
        Written: the output.
    act : [B, T, 6H] or [B, 1, 6H]
        Written: the activations; with one row, those of the last step only.
    h_before : [B, T, H] or empty
        Written: the hidden state before each step but the first.
    c_all : [B, T + 1, H] or empty
        Written from index 1 on: the cell state after each step.
    norm, eps
        ``NO_NORM``, ``BATCH_NORM`` or ``FIXED_NORM`` of the gates, and the
        number added to the variances.
    moments : [2, T, 4H] or empty
        Mean and biased variance of the gates at each step; written for
        ``BATCH_NORM``, read for ``FIXED_NORM``.
    norm_weight, norm_bias : [4H] or empty
        Scale and shift of the norm.
    """
    batch, time, _ = part_x.shape
    hidden = h.shape[1]
    four, six = 4 * hidden, 6 * hidden
    recurrent = np.empty((batch, six), act.dtype)
    tanh_c = np.empty(hidden, act.dtype)
    normed = np.empty(four, act.dtype)
    scale, shift = np.empty(four, act.dtype), np.empty(four, act.dtype)
    for t in range(time):
        # If activations are not kept, all steps share one row
        at = t % act.shape[1]
        if batch >= FEW:
            _gemm(h, weight, recurrent, sizes, numbers)
        else:
            for b in range(batch):
                if weight.shape[0] == six:
                    _matrix_vector(recurrent[b], weight, h[b])
                else:
                    _vector_matrix(recurrent[b], h[b], weight)
        for b in range(batch):
            if t < counts[b]:
                row, from_h = act[b, at], recurrent[b]
                x, y = part_x[b, t], part_y[b, t]
                _sigmoids(row[:four], x, y, from_h, bias)
                k, end = four, four + hidden
                _tanhs(row[k:end], x[four:], from_h[k:end], bias[k:end])
                _tanhs(row[end:], y[four:], from_h[end:], bias[end:])
        if norm == BATCH_NORM:
            _moments(act[:, at], counts > t, moments[0, t], moments[1, t])
        if norm != NO_NORM:
            for j in range(four):
                scale[j] = norm_weight[j] / math.sqrt(moments[1, t, j] + eps)
                shift[j] = norm_bias[j] - moments[0, t, j] * scale[j]
        for b in range(batch):
            if t < counts[b]:
                gates, candidates = act[b, at, :four], act[b, at, four:]
                if norm != NO_NORM:
                    _affine_to(normed, gates, scale, shift)
                    gates = normed
                _multiply(c[b], gates[:hidden])
                _multiply_add(
                    c[b], gates[hidden : 2 * hidden], candidates[:hidden]
                )
                _multiply_add(
                    c[b], gates[2 * hidden : 3 * hidden], candidates[hidden:]
                )
                _tanh_to(tanh_c, c[b])
                _multiply_to(h[b], gates[3 * hidden :], tanh_c)
                out[b, t] = h[b]
            else:
                out[b, t] = 0
            if len(c_all):
                c_all[b, t + 1] = c[b]
                if t + 1 < time:
                    h_before[b, t + 1] = h[b]


@compiled()
def _row_backward(grad, act, gates, dh, dc, c_before, tanh_c):
    """Gradients of an item's gates and candidates; dc becomes that of c_before."""
    hidden = dh.shape[0]
    three, four = 3 * hidden, 4 * hidden
    f, o = gates[:hidden], gates[three:]
    _multiply_to(grad[three:four], dh, tanh_c)
    for j in range(hidden):
        dc[j] += dh[j] * o[j] * (1 - tanh_c[j] * tanh_c[j])
    _multiply_to(grad[:hidden], dc, c_before)
    for k in range(2):
        i = gates[(k + 1) * hidden : (k + 2) * hidden]
        candidate = act[four + k * hidden : four + (k + 1) * hidden]
        _multiply_to(grad[(k + 1) * hidden : (k + 2) * hidden], dc, candidate)
        to = grad[four + k * hidden : four + (k + 1) * hidden]
        for j in range(hidden):
            to[j] = dc[j] * i[j] * (1 - candidate[j] * candidate[j])
    _multiply(dc, f)


@compiled()
def _through_sigmoids(grad, act):
    for j in range(act.shape[0]):
        grad[j] *= act[j] * (1 - act[j])


@compiled()
def backward(
    act: ndarray, weight: ndarray, c_all: ndarray, counts: ndarray,
    sizes: ndarray, numbers: ndarray,
    grad_out: ndarray, dh: ndarray, dc: ndarray,
    grad_x: ndarray, grad_y: ndarray, grad_bias: ndarray,
    norm: int, eps: float, moments: ndarray,
    norm_weight: ndarray, norm_bias: ndarray,
    grad_norm_weight: ndarray, grad_norm_bias: ndarray,
) -> None:  # fmt: skip
    """Run all steps backwards, on the arrays that ``forward`` wrote.

    Arguments as there, but sizes are H, B, 6H and the letter N, and weight is
    [6H, H]. grad_out [B, T, H] is the gradient of the output. dh and dc [B, H]
    are the gradients of the last state, overwritten by those of the initial
    one. grad_x and grad_y [B, T, 5H], the gradients of the projections, are
    written; the gradients of the bias and of the norm are added to.
    """
    batch, time, six = act.shape
    hidden = dh.shape[1]
    four = 4 * hidden
    kind = act.dtype
    tanh_c, back = np.empty(hidden, kind), np.empty((batch, hidden), kind)
    normed, sums = np.empty(four, kind), np.empty((3, four), kind)
    scale, shift = np.empty(four, kind), np.empty(four, kind)
    inverse, centre = np.empty(four, kind), np.empty(four, kind)
    step = np.empty((batch, six), kind)
    step_bias = np.empty(six, kind)
    for t in range(time - 1, -1, -1):
        if norm != NO_NORM:
            for j in range(four):
                inverse[j] = 1 / math.sqrt(moments[1, t, j] + eps)
                centre[j] = -moments[0, t, j] * inverse[j]
                scale[j] = norm_weight[j] * inverse[j]
                shift[j] = norm_bias[j] - moments[0, t, j] * scale[j]
            sums[:] = 0
        n = 0
        for b in range(batch):
            if t < counts[b]:
                n += 1
                gates = act[b, t, :four]
                if norm != NO_NORM:
                    _affine_to(normed, gates, scale, shift)
                    gates = normed
                _add(dh[b], grad_out[b, t])
                _tanh_to(tanh_c, c_all[b, t + 1])
                _row_backward(
                    *(step[b], act[b, t], gates),
                    *(dh[b], dc[b], c_all[b, t], tanh_c),
                )
                if norm != NO_NORM:
                    _affine_to(normed, act[b, t], inverse, centre)
                    _add(sums[0], step[b, :four])
                    _multiply_add(sums[1], step[b, :four], normed)
            else:
                step[b] = 0
        if norm != NO_NORM:
            _add(grad_norm_bias, sums[0])
            _add(grad_norm_weight, sums[1])
        step_bias[:] = 0
        for b in range(batch):
            if t < counts[b]:
                row = step[b]
                if norm == BATCH_NORM:
                    _affine_to(normed, act[b, t], inverse, centre)
                    for j in range(four):
                        common = (sums[0, j] + normed[j] * sums[1, j]) / n
                        row[j] = (row[j] - common) * scale[j]
                elif norm == FIXED_NORM:
                    _multiply(row, scale)
                _through_sigmoids(row, act[b, t, :four])
                _add(step_bias, row)
            grad_x[b, t] = step[b, : four + hidden]
            grad_y[b, t, :four] = step[b, :four]
            grad_y[b, t, four:] = step[b, four + hidden :]
        _add(grad_bias, step_bias)
        if batch < FEW:
            for b in range(batch):
                _vector_matrix(back[b], step[b], weight)
        else:
            _gemm(step, weight, back, sizes, numbers)
        for b in range(batch):
            if t < counts[b]:
                dh[b] = back[b]
