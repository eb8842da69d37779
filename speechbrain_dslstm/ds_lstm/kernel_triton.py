"""The DS-LSTM on a GPU: Triton kernels that run all steps in one launch.

The input projections of all steps are cuBLAS products, as in ``kernel_torch``.
One launch then runs the whole sequence and another runs it backwards
(``kernel_triton_loops``, by the formulas of ``kernel_torch``); the gradient of
the recurrent weight is one product at the end. Tensors have the type of the
weights, float32 or bfloat16; sums, cell states and the gradients of cell
states are float32. The products of float32 are as exact as float32, in three
parts on tensor cores, unless torch may use tf32 for its own: SpeechBrain allows
that, ``torch.backends.cuda.matmul.allow_tf32 = False`` forbids it.

Lengths stay on the device and no shape depends on them, so that a CUDA graph
can be captured; both directions are operators of torch.library, so that
torch.compile can be used. Reference and symbols: ``equations``.
"""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_dslstm.ds_lstm.kernel_torch import (
    project_inputs,
    refuse_second_derivatives,
)
from speechbrain_dslstm.utils.loops import Loops

__all__ = ["ds_lstm_triton", "triton_problem"]

LOOPS = Loops("speechbrain_dslstm.ds_lstm.kernel_triton_loops")
MOST_HIDDEN = 256
# Fewer or more are slower on an H100, except for bfloat16, where 4 are equal
WARPS = 8
# Bytes of a weight in the forward kernel: as it is, or in the parts of a sum
BYTES = {"ieee": 2, "tf32": 4, "tf32x3": 8, "bf16x6": 6}


class Plan(NamedTuple):
    """How a kernel divides its work: ``kernel_triton_loops`` has the symbols."""

    items: int
    units: int
    precision: str


class Machine(NamedTuple):
    """What plans depend on: multiprocessors, shared memory of a program."""

    processors: int
    shared: int


def triton_problem(like: Tensor, gate_norm: bool = False) -> str | None:
    """Reason why this backend cannot run with this input weight, or None.

    >>> triton_problem(torch.zeros(5, 3), gate_norm=True)
    'triton has no gate norm'
    """
    if gate_norm:
        return "triton has no gate norm"
    if like.dtype not in (torch.float32, torch.bfloat16):
        name = str(like.dtype).removeprefix("torch.")
        return f"triton stores float32 and bfloat16, not {name}"
    hidden = len(like) // 5
    if hidden > MOST_HIDDEN:
        return f"triton takes up to {MOST_HIDDEN} hidden units, not {hidden}"
    return _machine_problem(
        like.device.type, like.device.index, like.dtype, hidden
    )


@functools.cache
def _find_machine_problem(kind, index, interpreted):
    """Reason why this machine cannot run or build the kernels, or None."""
    if kind != "cuda" and not (kind == "cpu" and interpreted):
        return (
            f"triton runs on CUDA, not on {kind} (for tests, on the CPU with "
            "TRITON_INTERPRET=1)"
        )
    if kind == "cuda" and torch.version.hip:
        return "triton runs on GPUs by NVIDIA only"
    if kind == "cuda" and torch.version.cuda:
        if torch.cuda.get_device_capability(index) < (8, 0):
            return "triton needs a GPU of compute capability 8.0 or higher"
    compilers = os.environ.get("CC"), *map(shutil.which, ("gcc", "clang"))
    if kind == "cuda" and not any(compilers):
        return "triton finds no C compiler to build its launcher with"
    if kind == "cuda" and not _python_header().exists():
        return f"triton finds no {_python_header()} to build its launcher with"
    return LOOPS.problem


def _python_header():
    """Path where triton looks for Python.h, a package of its own on Debian."""
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":
        # Debian keeps the headers with those of the system's Python
        scheme = "posix_prefix"
    return Path(sysconfig.get_paths(scheme=scheme)["include"], "Python.h")


def _machine_problem(kind, index, dtype, hidden):
    """Reason why this machine cannot run the layer; a constant for torch.compile."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    problem = _find_machine_problem(kind, index, interpreted)
    if problem is None:
        machine = _find_machine(kind, index)
        for back in (False, True):
            if find_plan(machine, dtype, hidden, 1, back) is None:
                return (
                    f"triton has no room for {hidden} hidden units on this GPU"
                )
    return problem


@functools.cache
def _find_machine(kind, index):
    """Size of a GPU; of the interpreter, a large one's."""
    if kind != "cuda":
        return Machine(processors=132, shared=232448)
    found = torch.cuda.get_device_properties(index)
    return Machine(
        found.multi_processor_count, found.shared_memory_per_block_optin
    )


def find_plan(
    machine: Machine, dtype: torch.dtype, hidden: int, batch: int, back: bool
) -> Plan | None:
    """Divide a kernel's work; None where the weights find no room.

    >>> find_plan(Machine(132, 232448), torch.bfloat16, 200, 128, back=False)
    Plan(items=16, units=16, precision='ieee')
    """
    precisions = ["ieee"]
    if dtype == torch.float32:
        precisions = ["tf32"] if _allows_tf32() else ["tf32x3", "bf16x6"]
    for precision in precisions:
        for units in (16, 8):
            slices = -(-hidden // units)
            if slices > machine.processors:
                continue
            # More items at a time are slower, but faster than one after the other
            groups = -(-batch // 16)
            items = 16 if groups * slices <= machine.processors else 32
            if back:
                wide = _power(hidden)
                shared = 6 * units * dtype.itemsize + 4 * items
                shared *= wide
            else:
                one, last = _parts(hidden)
                shared = 8 * units * (3 * one + last) * BYTES[precision]
                shared += items * one * dtype.itemsize
            if shared <= machine.shared:
                return Plan(items, units, precision)
    return None


def _allows_tf32():
    """Whether torch may use tf32 for products of float32 on a GPU."""
    matmul = torch.backends.cuda.matmul
    # torch before 2.9 has no fp32_precision, and later ones may refuse the other
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


def _power(number):
    """Round up to a power of two, for tensor cores at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def _parts(hidden):
    """Lengths of the first three parts of a sum over hidden units, and the last."""
    one = _power(-(-hidden // 4))
    return one, _power(max(1, hidden - 3 * one))


# As torch.compiler.assume_constant_result, which takes a second to import
_machine_problem._dynamo_marked_constant = True


def ds_lstm_triton(
    x: Tensor, y: Tensor, h0: Tensor, c0: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    counts: Tensor | None = None,
    gate_norm: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one layer; same signature as ``ds_lstm_naive``, no second derivatives.

    There is no gate norm; weights are float32 or bfloat16, hidden up to 256.
    """
    problem = triton_problem(weight_x, gate_norm is not None)
    if problem is not None:
        raise ValueError(f"{problem}; use backend='auto'")
    projected = project_inputs(x, y, weight_x, weight_y, bias)
    # Autocast may have narrowed them; states keep the weights' precision
    projected, h0, c0 = (v.to(weight_h.dtype) for v in (projected, h0, c0))
    # The kernels read counts by pointer, but they may be a column of a table
    counts = counts if counts is None else counts.contiguous()
    tensors = (projected, h0, c0, weight_h)
    keep = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
    states, h, c, _, _ = _walk(*tensors, counts, keep)
    return states[1:].transpose(0, 1), h, c


def _launch(kernel, back, tensors, batch, steps, hidden, **flags):
    """Run all steps: on a GPU one launch for as many groups as it has room for."""
    like = tensors[0]
    machine = _find_machine(like.device.type, like.device.index)
    plan = find_plan(machine, like.dtype, hidden, batch, back)
    slices = -(-hidden // plan.units)
    groups = -(-batch // plan.items)
    room = machine.processors // slices
    # Whoever waits needs the others to run
    whole = [(0, steps + back)]
    options = {"launch_cooperative_grid": True}
    if not like.is_cuda:
        whole, options = [(t, t + 1) for t in range(steps + back)], {}
    ready = torch.zeros(groups, dtype=torch.int32, device=like.device)
    with torch.cuda.device_of(like):
        for first in range(0, groups, room):
            for begin, end in whole:
                kernel[(min(room, groups - first) * slices,)](
                    *tensors, ready, batch, steps, first, begin, end,
                    H=hidden, SLICES=slices, BLOCK_B=plan.items,
                    UNITS=plan.units, PRECISION=plan.precision,
                    num_warps=WARPS, num_stages=1, **flags, **options,
                )  # fmt: skip


@torch.library.custom_op("speechbrain_dslstm::walk", mutates_args=())
def _walk(
    projected: Tensor, h0: Tensor, c0: Tensor, weight: Tensor,
    counts: Tensor | None, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run all steps: all hidden states, last h and c, activations, cell states."""
    time, batch, _ = projected.shape
    states, h_n, c_n, act, cells = _empty(
        projected, h0, c0, weight, counts, keep
    )
    states[0], cells[0] = h0, c0
    if counts is not None:
        # A group stops after the last step of its longest item
        states[1:].zero_()
        h_n.copy_(h0)
        c_n.copy_(c0)
    one, last = _parts(h0.shape[1])
    _launch(
        LOOPS.load().forward,
        False,
        [projected.contiguous(), weight.contiguous(), counts]
        + [states, h_n, c_n, act, cells],
        batch,
        time,
        h0.shape[1],
        RAGGED=counts is not None,
        KEEP=keep,
        K1=one,
        K2=last,
    )
    return states, h_n, c_n, act, cells


@_walk.register_fake
def _empty(projected, h0, c0, weight, counts, keep):
    """Allocate the results of ``_walk``."""
    time, batch, six = projected.shape
    like, hidden = projected.new_empty, six // 6
    cells = time + 1 if keep else 1
    return (
        like(time + 1, batch, hidden),
        like(batch, hidden),
        like(batch, hidden),
        like(time if keep else 0, batch, six),
        like(cells, batch, hidden, dtype=torch.float32),
    )


@torch.library.custom_op("speechbrain_dslstm::walk_back", mutates_args=())
def _walk_back(
    grad_states: Tensor, grad_h: Tensor, grad_c: Tensor,
    weight: Tensor, counts: Tensor | None, act: Tensor, cells: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run all steps backwards: gradients of projections and initial state."""
    time, batch, _ = act.shape
    make = torch.empty_like if counts is None else torch.zeros_like
    grad_z = make(act)
    grad_h0 = act.new_empty(grad_h.shape)
    hidden = grad_h.shape[1]
    # The kernel turns it into the gradient of the initial cell state
    grad_c = grad_c.to(torch.float32, copy=True).contiguous()
    # Fewest units of a program, hence most programs of a group
    shares = cells.new_empty(2, -(-hidden // 8), batch, hidden)
    _launch(
        LOOPS.load().backward,
        True,
        [v.contiguous() for v in (grad_states, grad_h, weight)]
        + [counts, act, cells, grad_z, grad_h0, grad_c, shares],
        batch,
        time,
        hidden,
        RAGGED=counts is not None,
        WIDE=_power(hidden),
    )
    return grad_z, grad_h0, grad_c.to(act.dtype)


@_walk_back.register_fake
def _(grad_states, grad_h, grad_c, weight, counts, act, cells):
    return (
        torch.empty_like(act),
        act.new_empty(grad_h.shape),
        act.new_empty(grad_c.shape),
    )


def _keep(ctx, inputs, output):
    """Save what the backward pass needs."""
    _, _, _, weight, counts, _ = inputs
    states, h_n, c_n, act, cells = output
    ctx.mark_non_differentiable(act, cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, counts, states, act, cells)


def _gradients(ctx, grad_states, grad_h, grad_c, _act, _cells):
    """Run all steps backwards, then one product for the weight's gradient."""
    refuse_second_derivatives()
    weight, counts, states, act, cells = ctx.saved_tensors
    zero = states.new_zeros(()).expand
    grad_states = zero(states.shape) if grad_states is None else grad_states
    grad_h = zero(states.shape[1:]) if grad_h is None else grad_h
    grad_c = zero(states.shape[1:]) if grad_c is None else grad_c
    grad_z, grad_h0, grad_c0 = _walk_back(
        grad_states, grad_h, grad_c, weight, counts, act, cells
    )
    with torch.autocast(states.device.type, enabled=False):
        grad_weight = grad_z.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
    return grad_z, grad_h0, grad_c0, grad_weight, None, None


_walk.register_autograd(_gradients, setup_context=_keep)
