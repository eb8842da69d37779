"""The DS-LSTM on a GPU: Triton kernels that run all steps in one launch.

The input projections of all steps are cuBLAS products, as in ``kernel_torch``.
One launch then runs the whole sequence and another runs it backwards
(``kernel_triton_loops``, by the formulas of ``kernel_torch``); the gradient of
the recurrent weight is one product at the end. Tensors have the type of the
weights, float32 or bfloat16; sums, cell states and the gradients of cell
states are float32.

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
# Options of the forward and of the backward kernel: items, units and terms of a
# sum at a time, warps and stages. Tensor cores multiply 16 rows; without them
# fewer rows spread over more multiprocessors. All fit 99 KB of shared memory;
# chosen by the registers and loads in the compiled code.
BLOCKS = ("BLOCK_B", "BLOCK_U", "BLOCK_K", "num_warps", "num_stages")
SIZES = {
    torch.float32: [(4, 64, 16, 4, 3), (4, 64, 64, 4, 3)],
    torch.bfloat16: [(16, 32, 64, 4, 4), (16, 64, 64, 4, 4)],
}


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
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return _machine_problem(like.device.type, like.device.index, interpreted)


@functools.cache
def _find_machine_problem(kind, index, interpreted):
    """Reason why this machine cannot run or build the kernels, or None."""
    if kind != "cuda" and not (kind == "cpu" and interpreted):
        return (
            f"triton runs on CUDA, not on {kind} (for tests, on the CPU with "
            "TRITON_INTERPRET=1)"
        )
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


def _machine_problem(*where):
    """``_find_machine_problem``, as a constant for torch.compile."""
    return _find_machine_problem(*where)


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


def _launch(kernel, is_backward, tensors, sizes, hidden, **flags):
    """Start one program for each block of items, on the tensors' device."""
    like = tensors[0]
    options = dict(zip(BLOCKS, SIZES[like.dtype][is_backward], strict=True))
    with torch.cuda.device_of(like):
        kernel[(-(-sizes[0] // options["BLOCK_B"]),)](
            *tensors, *sizes, H=hidden, **flags, **options
        )


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
        # A block stops after the last step of its longest item
        states[1:].zero_()
        h_n.copy_(h0)
        c_n.copy_(c0)
    _launch(
        LOOPS.load().forward,
        False,
        [projected.contiguous(), weight.contiguous(), counts]
        + [states, h_n, c_n, act, cells],
        [batch, time, len(cells)],
        h0.shape[1],
        RAGGED=counts is not None,
        KEEP=keep,
    )
    return states, h_n, c_n, act, cells


@_walk.register_fake
def _empty(projected, h0, c0, weight, counts, keep):
    """Allocate the results of ``_walk``."""
    time, batch, six = projected.shape
    like, hidden = projected.new_empty, six // 6
    cells = time + 1 if keep else 2
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
    grad_h0, grad_c0 = (act.new_empty(grad_h.shape) for _ in range(2))
    slots = cells.new_empty(2, *grad_c.shape)
    slots[0] = grad_c
    _launch(
        LOOPS.load().backward,
        True,
        [v.contiguous() for v in (grad_states, grad_h, weight)]
        + [counts, act, cells, grad_z, grad_h0, grad_c0, slots],
        [batch, time],
        grad_h.shape[1],
        RAGGED=counts is not None,
    )
    return grad_z, grad_h0, grad_c0


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
