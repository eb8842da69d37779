r"""DS-LSTM on a GPU: two Triton kernels walk through all steps.

The input projections of all steps are cuBLAS's, as in ``kernel_eager``. Then
one launch takes the whole sequence, and one walks back through it
(``triton_loops``, by the formulas of ``kernel_fused``); the gradient of the
recurrent weight is one product at the end. Everything is kept in the type of
the weights, float32 or bfloat16; sums, cell states and their gradients are
float32.

Lengths stay on the device and no shape depends on them, so that a CUDA graph
can hold it; as operators of torch.library, both directions go through
torch.compile. Reference: ``equations.ds_lstm_naive``, whose signature this
has.
"""

import functools
import importlib
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from speechbrain_dslstm.ds_lstm.kernel_torch import (
    project_inputs,
    refuse_second_derivatives,
)

__all__ = ["ds_lstm_triton", "triton_problem"]

MOST_HIDDEN = 256
# Way forward and back. Items, units and terms of a sum at a time: tensor cores
# multiply 16 rows; without them fewer rows spread over more multiprocessors.
# All fit 99 KB of shared memory. Chosen by what the compiler makes of them.
BLOCKS = ("BLOCK_B", "BLOCK_U", "BLOCK_K", "num_warps", "num_stages")
SIZES = {
    torch.float32: [(4, 64, 16, 4, 3), (4, 64, 64, 4, 3)],
    torch.bfloat16: [(16, 32, 64, 4, 4), (16, 64, 64, 4, 4)],
}


@functools.cache
def _loops():
    return importlib.import_module(
        "speechbrain_dslstm.ds_lstm.kernel_triton_loops"
    )


@functools.cache
def _look_around(kind, index, interpreted):
    """What a device, and what is installed beside it, lacks."""
    if kind != "cuda" and not (kind == "cpu" and interpreted):
        return (
            f"triton runs on CUDA, not on {kind} (for tests, on the CPU with "
            "TRITON_INTERPRET=1)"
        )
    if kind == "cuda" and torch.version.cuda:
        if torch.cuda.get_device_capability(index) < (8, 0):
            return "triton needs a GPU of compute capability 8.0"
    compilers = os.environ.get("CC"), *map(shutil.which, ("gcc", "clang"))
    if kind == "cuda" and not any(compilers):
        return "triton finds no C compiler to build its launcher with"
    if kind == "cuda" and not _python_header().exists():
        return f"triton finds no {_python_header()} to build its launcher with"
    try:
        _loops()
    except ImportError as error:
        return f"triton does not import ({error})"
    return None


def _python_header():
    """Python.h, where triton looks for it; Debian packs it separately."""
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":
        # Debian's, whose folder of headers is that of the system's Python
        scheme = "posix_prefix"
    return Path(sysconfig.get_paths(scheme=scheme)["include"], "Python.h")


def _machine_problem(*where):
    """The same; torch.compile takes the answer as it is."""
    return _look_around(*where)


# torch.compiler.assume_constant_result, which takes a second to import
_machine_problem._dynamo_marked_constant = True


def triton_problem(like, gate_norm=False):
    """Why this backend cannot run, if it cannot.

    Arguments
    ---------
    like : torch.Tensor, [5 * hidden, input]
        Either weight of the inputs.
    gate_norm : bool
        Whether gates are normalised.

    Returns
    -------
    str or None
        The reason; None if it can run.

    Example
    -------
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


def _launch(kernel, back, tensors, sizes, hidden, **flags):
    """One program for each block of items, on the device of the tensors."""
    like = tensors[0]
    options = dict(zip(BLOCKS, SIZES[like.dtype][back], strict=True))
    with torch.cuda.device_of(like):
        kernel[(-(-sizes[0] // options["BLOCK_B"]),)](
            *tensors, *sizes, H=hidden, **flags, **options
        )


@torch.library.custom_op("speechbrain_dslstm::walk", mutates_args=())
def _walk(
    projected: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight: Tensor,
    counts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All steps: states from the initial one on, last ones, and what is kept."""
    time, batch, _ = projected.shape
    states, h_n, c_n, act, cells = _empty(
        projected, h0, c0, weight, counts, keep
    )
    states[0], cells[0] = h0, c0
    if counts is not None:
        # Steps that no item of a block has are not walked through
        states[1:].zero_()
        h_n.copy_(h0)
        c_n.copy_(c0)
    _launch(
        _loops().forward,
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
    """Memory of what ``_walk`` returns."""
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
    grad_states: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    weight: Tensor,
    counts: Tensor | None,
    act: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps backwards: gradients of projections and initial state."""
    time, batch, _ = act.shape
    make = torch.empty_like if counts is None else torch.zeros_like
    grad_z = make(act)
    grad_h0, grad_c0 = (act.new_empty(grad_h.shape) for _ in range(2))
    slots = cells.new_empty(2, *grad_c.shape)
    slots[0] = grad_c
    _launch(
        _loops().backward,
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
    """What the way back needs."""
    _, _, _, weight, counts, _ = inputs
    states, h_n, c_n, act, cells = output
    ctx.mark_non_differentiable(act, cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, counts, states, act, cells)


def _gradients(ctx, grad_states, grad_h, grad_c, _act, _cells):
    """The way back, then the product of the recurrent weight."""
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


def ds_lstm_triton(
    x,
    y,
    h0,
    c0,
    weight_x,
    weight_y,
    weight_h,
    bias,
    counts=None,
    gate_norm=None,
):
    """One layer of the DS-LSTM over whole sequences; no second derivatives.

    Arguments
    ---------
    x : torch.Tensor, [batch, time, input_x]
        Fine-time sequence, on a GPU.
    y : torch.Tensor, [batch, time, input_y]
        Fine-frequency sequence, aligned with ``x``.
    h0 : torch.Tensor, [batch, hidden]
        Initial hidden state.
    c0 : torch.Tensor, [batch, hidden]
        Initial cell state.
    weight_x : torch.Tensor, [5 * hidden, input_x]
        Blocks f i_T i_F o C_T; float32 or bfloat16, hidden up to 256.
    weight_y : torch.Tensor, [5 * hidden, input_y]
        Blocks f i_T i_F o C_F.
    weight_h : torch.Tensor, [6 * hidden, hidden]
        Blocks f i_T i_F o C_T C_F.
    bias : torch.Tensor, [6 * hidden]
        Blocks f i_T i_F o C_T C_F.
    counts : torch.Tensor, int64, [batch], optional
        Valid steps of each item; all of them if left out.
    gate_norm : None
        Not supported here; ``kernel_eager`` does it.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        Hidden states; zero at padded steps.
    h : torch.Tensor, [batch, hidden]
        Hidden state after each item's last valid step.
    c : torch.Tensor, [batch, hidden]
        Cell state after each item's last valid step.

    Raises
    ------
    ValueError
        It cannot run here or on these tensors.

    Example
    -------
    >>> sizes = [(5, 7, 3), (5, 7, 4), (5, 2), (5, 2), (10, 3), (10, 4)]
    >>> args = [torch.zeros(size) for size in [*sizes, (12, 2), (12,)]]
    >>> ds_lstm_triton(*(arg.double() for arg in args))
    Traceback (most recent call last):
        ...
    ValueError: triton stores float32 and bfloat16, not float64; use ...
    """
    problem = triton_problem(weight_x, gate_norm is not None)
    if problem is not None:
        raise ValueError(f"{problem}; use backend='auto'")
    projected = project_inputs(x, y, weight_x, weight_y, bias)
    # Autocast may have made them narrower: states keep the weights' precision
    projected, h0, c0 = (v.to(weight_h.dtype) for v in (projected, h0, c0))
    # The kernels read it by pointer; it may be a column of a table
    counts = counts if counts is None else counts.contiguous()
    wanting = (projected, h0, c0, weight_h)
    keep = torch.is_grad_enabled() and any(v.requires_grad for v in wanting)
    states, h, c, _, _ = _walk(*wanting, counts, keep)
    return states[1:].transpose(0, 1), h, c
