"""Candidate ways to run the DS-LSTM on a GPU, to be timed beside the backends."""

import torch

from speechbrain_dslstm.ds_lstm import kernel_triton
from speechbrain_dslstm.ds_lstm.kernel_torch import project_inputs

__all__ = ["cublas_loop", "group", "walk_with"]


def power(number):
    """The next power of two, at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def chunks(hidden):
    """How the kernels cut their sums: forward (K1, K2), backward (K1, K2)."""
    one = power(-(-hidden // 4))
    part = -(-6 * hidden // 8)
    large = max(16, 1 << (part.bit_length() - 1))
    return (one, power(max(1, hidden - 3 * one))), (
        large,
        power(max(1, part - large)),
    )


def launch(kernel, tensors, batch, time, blocks, constants, hidden):
    """Start as many programs at once as the GPU has room for."""
    items, units, warps, precision = blocks
    slices = -(-hidden // units)
    tiles = -(-batch // items)
    if tensors[0].is_cuda:
        device = torch.cuda.get_device_properties(tensors[0].device)
        room = device.multi_processor_count // slices
        options = {"launch_cooperative_grid": True}
    else:
        room, options = tiles, {}
    ready = torch.zeros(tiles, dtype=torch.int32, device=tensors[0].device)
    for first in range(0, tiles, room):
        kernel[(min(room, tiles - first) * slices,)](
            *tensors, ready, batch, time, first,
            H=hidden, SLICES=slices, BLOCK_B=items, UNITS=units,
            PRECISION=precision, num_warps=warps, num_stages=1,
            **constants, **options,
        )  # fmt: skip


def forward(projected, h0, c0, weight, counts, keep, blocks):
    """As ``kernel_triton._walk``, by groups of programs."""
    import gpu_group_loops

    time, batch, six = projected.shape
    hidden = six // 6
    states = projected.new_empty(time + 1, batch, hidden)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    act = projected.new_empty(time if keep else 0, batch, six)
    cells = states.new_empty(
        time + 1 if keep else 1, batch, hidden, dtype=torch.float32
    )
    states[0], cells[0] = h0, c0
    if counts is not None:
        states[1:].zero_()
        h_n.copy_(h0)
        c_n.copy_(c0)
    (one, two), _ = chunks(hidden)
    launch(
        gpu_group_loops.group_forward,
        [projected, weight, counts, states, h_n, c_n, act, cells, c0],
        batch, time, blocks,
        {"RAGGED": counts is not None, "KEEP": keep, "K1": one, "K2": two},
        hidden,
    )  # fmt: skip
    return states, h_n, c_n, act, cells


def backward(grad_states, grad_h, grad_c, weight, counts, act, cells, blocks):
    """As ``kernel_triton._walk_back``, by groups of programs."""
    import gpu_group_loops

    time, batch, six = act.shape
    hidden = six // 6
    make = torch.empty_like if counts is None else torch.zeros_like
    grad_z = make(act)
    grad_h0, grad_c0 = torch.empty_like(grad_h), torch.empty_like(grad_c)
    _, (one, two) = chunks(hidden)
    launch(
        gpu_group_loops.group_backward,
        [grad_states, grad_h, weight, counts, act, cells, grad_z]
        + [grad_h0, grad_c0, grad_c],
        batch, time, blocks,
        {"RAGGED": counts is not None, "K1": one, "K2": two},
        hidden,
    )  # fmt: skip
    return grad_z, grad_h0, grad_c0


class Group(torch.autograd.Function):
    """The recurrence by groups of programs."""

    @staticmethod
    def forward(ctx, projected, h0, c0, weight, counts, ahead, back):
        """Run all steps."""
        keep = any(ctx.needs_input_grad)
        found = forward(
            projected.contiguous(), h0.contiguous(), c0.contiguous(),
            weight.contiguous(), counts, keep, ahead,
        )  # fmt: skip
        states, h_n, c_n, act, cells = found
        ctx.save_for_backward(weight, counts, states, act, cells)
        ctx.back = back
        return states, h_n, c_n

    @staticmethod
    def backward(ctx, grad_states, grad_h, grad_c):
        """Run all steps backwards."""
        weight, counts, states, act, cells = ctx.saved_tensors
        grad_z, grad_h0, grad_c0 = backward(
            grad_states.contiguous(), grad_h.contiguous(), grad_c.contiguous(),
            weight.contiguous(), counts, act, cells, ctx.back,
        )  # fmt: skip
        grad_w = grad_z.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
        return grad_z, grad_h0, grad_c0, grad_w, None, None, None


def group(ahead, back):
    """A backend that runs by groups, with options of either direction.

    Each is (items, units, warps, precision).
    """

    def run(
        x, y, h0, c0, weight_x, weight_y, weight_h, bias, counts=None, norm=None
    ):
        projected = project_inputs(x, y, weight_x, weight_y, bias)
        out, h, c = Group.apply(
            projected, h0, c0, weight_h, counts, ahead, back
        )
        return out[1:].transpose(0, 1), h, c

    return run


def walk_with(sizes, index):
    """The present kernel's ``_launch`` with other options in one direction."""

    def use(run):
        def call():
            usual = kernel_triton.SIZES
            kernel_triton.SIZES = {
                dtype: [
                    sizes if k == index else value
                    for k, value in enumerate(values)
                ]
                for dtype, values in usual.items()
            }
            try:
                return run()
            finally:
                kernel_triton.SIZES = usual

        return call

    return use


def cublas_loop(x, y, h0, c0, weight_x, weight_y, weight_h, bias):
    """Inference by a product of cuBLAS and one fused kernel for each step."""
    from gpu_group_loops import pointwise

    projected = project_inputs(x, y, weight_x, weight_y, bias)
    time, batch, six = projected.shape
    hidden = six // 6
    states = projected.new_empty(time + 1, batch, hidden)
    cells = projected.new_empty(2, batch, hidden, dtype=torch.float32)
    z = torch.empty_like(projected[0])
    states[0], cells[0] = h0, c0
    weight = weight_h.t()
    size = batch * hidden
    for t in range(time):
        torch.addmm(projected[t], states[t], weight, out=z)
        pointwise[(-(-size // 512),)](
            z, cells[t % 2], states[t + 1], cells[(t + 1) % 2], size,
            H=hidden, BLOCK=512,
        )  # fmt: skip
    return states[1:].transpose(0, 1)
