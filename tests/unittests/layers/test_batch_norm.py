"""Batch norm: torch's own on the valid frames, and one result on two ranks.

Run as a script, ``python test_batch_norm.py rank folder``, this file is one of
the two processes of the distributed tests.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings, strategies as st

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.layers import (
    MaskedBatchNorm,
    StepBatchNorm,
    batch_norm as batch_norm_module,
)
from speechbrain_dslstm.layers.batch_norm import masked_moments
from speechbrain_dslstm.lengths import length_mask

NAN = float("nan")
EXACT = {"atol": 1e-10, "rtol": 1e-10}
STATISTICS = ("running_mean", "running_var")
count_lists = st.lists(st.integers(1, 6), min_size=2, max_size=5)


def noise(*shape, seed=0):
    """Random float64 values, far from zero mean and unit variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.5, 3, shape[-1]) + 2


def ramp(x):
    """A different weight for each value, so that no gradient cancels."""
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype).sin().view_as(x)


def pair(channels, torch_class, **options):
    """Ours and torch's, with the same random scale and shift."""
    ours = MaskedBatchNorm(channels, **options).double()
    theirs = torch_class(channels, **options).double()
    for name in ("weight", "bias"):
        values = noise(channels, seed=len(name))
        for norm in (ours, theirs):
            getattr(norm, name).data.copy_(values)
    return ours, theirs


def assert_same_state(ours, theirs):
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            getattr(ours, name).grad, getattr(theirs, name).grad, **EXACT
        )
    for name in STATISTICS:
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), **EXACT
        )


@pytest.mark.parametrize(
    ("shape", "torch_class"),
    [((4, 7, 3), torch.nn.BatchNorm1d), ((2, 5, 4, 3), torch.nn.BatchNorm2d)],
)
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2, "momentum": 0.3}])
def test_without_counts_it_is_torch(shape, torch_class, options):
    ours, theirs = pair(3, torch_class, **options)
    for step in range(4):
        # Three batches in training, one in evaluation
        if step == 3:
            ours.eval(), theirs.eval()
        x = noise(*shape, seed=step).requires_grad_()
        x_ = x.detach().clone().requires_grad_()
        out = ours(x)
        expected = theirs(x_.movedim(-1, 1)).movedim(1, -1)
        torch.testing.assert_close(out, expected, **EXACT)
        (out * ramp(out)).sum().backward()
        (expected * ramp(expected)).sum().backward()
        torch.testing.assert_close(x.grad, x_.grad, **EXACT)
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("garbage", [NAN, float("inf"), 1e30])
@pytest.mark.parametrize("inner", [(), (2,)])
@given(count_lists)
@settings(max_examples=15)
def test_counts_mean_the_packed_frames(garbage, inner, counts):
    """Padding of any kind leaves outputs, statistics and gradients alone."""
    ours, theirs = pair(3, torch.nn.BatchNorm1d)
    counts = torch.tensor(counts)
    mask = length_mask(counts, 7)
    x = noise(len(counts), 7, *inner, 3)
    packed = x[mask].requires_grad_()
    x[~mask] = garbage
    x.requires_grad_()
    out = ours(x, counts)[mask]
    expected = theirs(packed.reshape(-1, 3)).view_as(packed)
    torch.testing.assert_close(out, expected, **EXACT)
    (out * ramp(out)).sum().backward()
    (expected * ramp(expected)).sum().backward()
    torch.testing.assert_close(x.grad[mask], packed.grad, **EXACT)
    assert x.grad[~mask].abs().max() == 0
    assert_same_state(ours, theirs)


def test_evaluation_uses_running_statistics_only():
    norm = MaskedBatchNorm(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.randn(2, 3, 2)
    expected = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    expected[1, 1:] = 0
    torch.testing.assert_close(norm(x, torch.tensor([3, 1])), expected)
    torch.testing.assert_close(dict(norm.state_dict()), before, atol=0, rtol=0)


def test_one_frame_alone():
    """Where torch gives up: no variance, the shift comes out, nothing is NaN."""
    norm = MaskedBatchNorm(2)
    norm.bias.data.fill_(0.5)
    out = norm(torch.full((1, 4, 2), 7.0), torch.tensor([1]))
    torch.testing.assert_close(out[0, 0], torch.full((2,), 0.5))
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.7))
    torch.testing.assert_close(norm.running_var, torch.full((2,), 0.9))


@pytest.mark.parametrize(
    "norm", [MaskedBatchNorm(3, weight_init=0.3), StepBatchNorm(3, steps=4)]
)
def test_reset(norm):
    fresh = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.weight.data.uniform_()
    norm.bias.data.uniform_()
    is_step = isinstance(norm, StepBatchNorm)
    norm(torch.randn(5, 3), 2) if is_step else norm(torch.randn(2, 5, 3))
    assert all(
        not torch.equal(v, fresh[k]) for k, v in norm.state_dict().items()
    )
    norm.reset_parameters()
    torch.testing.assert_close(dict(norm.state_dict()), fresh, atol=0, rtol=0)


def test_wrong_channels():
    with pytest.raises(ValueError, match="expected 3 channels.*got 4"):
        MaskedBatchNorm(3)(torch.zeros(2, 5, 4))


def test_gradcheck():
    norm = MaskedBatchNorm(2).double()
    counts = torch.tensor([4, 1, 3])

    def run(x, weight, bias):
        state = {"weight": weight, "bias": bias}
        out = torch.func.functional_call(norm, state, (x, counts))
        return out[length_mask(counts, 4)]

    args = noise(3, 4, 2), noise(2, seed=1), noise(2, seed=2)
    assert torch.autograd.gradcheck(run, [a.requires_grad_() for a in args])


def test_moments():
    mask = torch.rand(3, 4, 1, 1) < 0.6
    x = noise(3, 4, 5, 2).masked_fill(~mask, NAN)
    mean, variance, count = masked_moments(x, mask)
    packed = x[mask[..., 0, 0]].reshape(-1, 2)
    torch.testing.assert_close(mean, packed.mean(0), **EXACT)
    torch.testing.assert_close(variance, packed.var(0, correction=0), **EXACT)
    assert count == len(packed)
    nothing = masked_moments(x, torch.zeros_like(mask))
    assert [v.abs().sum().item() for v in nothing] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_moments_of_16_bits(dtype, masked):
    """More positions and larger sums than float16 can hold, as under autocast."""
    x = (200 + 30 * noise(2, 40000, 3)).to(dtype).requires_grad_()
    mask = torch.ones(2, 40000, 1, dtype=torch.bool) if masked else None
    expected = masked_moments(x.double(), mask)
    found = masked_moments(x, mask)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=0)
    norm = MaskedBatchNorm(3)
    norm(x, torch.tensor([40000, 40000]) if masked else None).sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(norm.running_mean, 0.1 * found[0])


def test_step_statistics_are_those_of_the_step():
    """Each step is a batch norm of its own; scale and shift are shared."""
    norm = StepBatchNorm(3, steps=4).double()
    each = [torch.nn.BatchNorm1d(3).double() for _ in range(4)]
    for one in each:
        one.weight.data.copy_(norm.weight.data)
    # Sigmoids, and not in order
    for batch, step in enumerate([2, 0, 1, 2, 3, 0]):
        x = noise(5, 3, seed=batch).sigmoid()
        torch.testing.assert_close(norm(x, step), each[step](x), **EXACT)
    for step, one in enumerate(each):
        for name in STATISTICS:
            ours = getattr(norm, name)[step]
            torch.testing.assert_close(ours, getattr(one, name), **EXACT)
        x = noise(2, 3, seed=9)
        torch.testing.assert_close(norm.eval()(x, step), one.eval()(x), **EXACT)


def test_later_steps_share_the_last_trained_one():
    norm = StepBatchNorm(2, steps=6)
    for step in range(3):
        norm(torch.randn(8, 2) + step, step)
    assert norm.steps_seen == 3
    norm.eval()
    x = torch.randn(4, 2)
    for step in (3, 5, 6, 1000):
        torch.testing.assert_close(norm(x, step), norm(x, 2), atol=0, rtol=0)
    assert not torch.equal(norm(x, 2), norm(x, 1))


def test_training_past_the_last_step_shares_its_statistics():
    norm = StepBatchNorm(2, steps=2)
    first = norm.running_mean[0].clone()
    norm(torch.ones(3, 2), 1)
    norm(torch.ones(3, 2), 40)
    torch.testing.assert_close(norm.running_mean[1], torch.full((2,), 0.19))
    torch.testing.assert_close(norm.running_mean[0], first)
    assert norm.steps_seen == 2


def test_step_norm_before_training():
    norm = StepBatchNorm(2, steps=3).eval()
    x = torch.randn(4, 2)
    torch.testing.assert_close(norm(x, 2), 0.1 * x)


@pytest.mark.parametrize("garbage", [NAN, float("inf"), 1e30])
def test_items_beyond_their_length_do_not_enter(garbage):
    valid = torch.tensor([True, False, True, True, False])
    ours, theirs = (StepBatchNorm(3, steps=2).double() for _ in range(2))
    x = noise(5, 3)
    packed = x[valid].requires_grad_()
    x[~valid] = garbage
    x.requires_grad_()
    out, expected = ours(x, 1, valid)[valid], theirs(packed, 1)
    torch.testing.assert_close(out, expected, **EXACT)
    (out * ramp(out)).sum().backward()
    (expected * ramp(expected)).sum().backward()
    torch.testing.assert_close(x.grad[valid], packed.grad, **EXACT)
    assert x.grad[~valid].abs().max() == 0
    assert_same_state(ours, theirs)


def test_a_step_nobody_reaches_leaves_no_trace():
    norm = StepBatchNorm(3, steps=4)
    norm(torch.randn(5, 3), 0)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.randn(5, 3, requires_grad=True)
    out = norm(x, 2, torch.zeros(5, dtype=torch.bool))
    torch.testing.assert_close(dict(norm.state_dict()), before, atol=0, rtol=0)
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


def test_step_gradcheck():
    norm = StepBatchNorm(2, steps=2).double()
    valid = torch.tensor([True, True, False, True])

    def run(x, weight, bias):
        state = {"weight": weight, "bias": bias}
        return torch.func.functional_call(norm, state, (x, 1, valid))[valid]

    args = noise(4, 2), noise(2, seed=1), noise(2, seed=2)
    assert torch.autograd.gradcheck(run, [a.requires_grad_() for a in args])


# One process and two of them: the same batch of four


COUNTS = torch.tensor([9, 4, 6, 3])
CASES = ["masked", "step", "gates", "gates_without_lengths"]


def share_of(rank):
    """Items of a rank, padded to their own longest: 9 and 6 frames."""
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return rows, int(COUNTS[rows].max())


def run_case(case, rank=None):
    """Outputs, gradients and state of a rank; of one process without."""
    rows, time = share_of(rank)
    counts = COUNTS[rows]
    x, y = noise(4, 9, 3)[rows, :time], noise(4, 9, 2, seed=1)[rows, :time]
    x.requires_grad_()
    weight = ramp(torch.zeros(4, 9, 6, dtype=torch.float64))[rows, :time]
    valid = length_mask(counts, time).unsqueeze(-1)
    torch.manual_seed(0)
    if case == "masked":
        net = MaskedBatchNorm(3).double()
        out = net(x, counts)
    elif case == "step":
        # Both ranks call every step, whatever they hold
        net = StepBatchNorm(3, steps=8).double()
        grown = torch.nn.functional.pad(x, (0, 0, 0, 9 - time))
        steps = [net(grown[:, t], t, t < counts) for t in range(9)]
        out = torch.stack(steps, dim=1)[:, :time]
    else:
        net = DSLSTM(
            3, 2, 6, num_layers=2, gate_norm="batch", output_norm="batch"
        ).double()
        if case == "gates_without_lengths" and rank is not None:
            # Full items of different length on the two ranks
            out, _ = net(x, y)
        elif case == "gates_without_lengths":
            out, _ = net(x, y, torch.tensor([9, 9, 6, 6]))
        else:
            out, _ = net(x, y, counts)
    if case == "gates_without_lengths":
        ends = torch.tensor([9, 9, 6, 6])[rows]
        valid = length_mask(ends, time).unsqueeze(-1)
    out = out * valid
    (out * weight[..., : out.shape[-1]]).sum().backward()
    return {
        "out": out.detach(),
        "x_grad": x.grad,
        "grads": {k: p.grad for k, p in net.named_parameters()},
        "buffers": dict(net.named_buffers()),
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two real processes with gloo find, by case."""
    folder = tmp_path_factory.mktemp("gloo")
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [rank.communicate(timeout=120)[0] for rank in ranks]
    except subprocess.TimeoutExpired:
        pytest.fail("the two ranks wait for each other")
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(logs)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(case, two_ranks):
    found = [rank[case] for rank in two_ranks]
    expected = run_case(case)
    for rank, one in enumerate(found):
        rows, time = share_of(rank)
        for name in ("out", "x_grad"):
            torch.testing.assert_close(
                one[name], expected[name][rows, :time], **EXACT
            )
        # Statistics stand complete on every rank
        torch.testing.assert_close(one["buffers"], expected["buffers"], **EXACT)
    for name, grad in expected["grads"].items():
        both = found[0]["grads"][name] + found[1]["grads"][name]
        torch.testing.assert_close(both, grad, **EXACT, msg=name)
        # The comparison would hold for two idle ranks, too
        assert grad.abs().max() > 0


def run_rank(rank, folder):
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").resolve().as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found = {case: run_case(case, rank) for case in CASES}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))


@pytest.mark.parametrize("counts", [[3, 6], [3, -1], [3]])
def test_counts_that_do_not_fit(counts):
    """Compiled loops would read and write what is not theirs."""
    with pytest.raises(ValueError, match="2 counts from 0 to 5 frames, got"):
        MaskedBatchNorm(3)(torch.randn(2, 5, 3), torch.tensor(counts))


def test_the_output_can_be_changed_in_place():
    norm, x = MaskedBatchNorm(3), torch.randn(2, 5, 3, requires_grad=True)
    expected = torch.autograd.grad(norm(x).mul(2).relu().sum(), x)
    found = torch.autograd.grad(norm(x).mul_(2).relu_().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 3), (3, 9, 5, 40)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", ["loops", "threads", "plain torch"])
def test_batch_norm_is_the_formula(shape, masked, relu, way, monkeypatch):
    """Whether numba is there or not."""
    if way == "threads":
        monkeypatch.setattr("speechbrain_dslstm.utils.loops.THREAD_VALUES", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    elif way == "plain torch":
        monkeypatch.setattr(
            "speechbrain_dslstm.layers.batch_norm.batch_norm_problem",
            lambda x: "no numba",
        )
    batch_norm_problem = batch_norm_module.batch_norm_problem
    x = torch.randn(shape, dtype=torch.float64)
    counts = torch.tensor([shape[1], 2, 1, 3, 5][: shape[0]])
    counts = counts if masked else None
    upstream = torch.randn(shape, dtype=torch.float64)
    found = []
    for by_hand in (True, False):
        norm = MaskedBatchNorm(shape[-1]).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-2, 2, shape[-1]))
            norm.bias.copy_(torch.linspace(1, -1, shape[-1]))
        leaf = x.clone().requires_grad_()
        mask = torch.ones(shape[:2], dtype=torch.bool)
        if masked:
            mask = length_mask(counts, shape[1])
        mask = mask.view(*mask.shape, *[1] * (x.dim() - 2))
        if by_hand:
            assert (batch_norm_problem(leaf) is None) == (way != "plain torch")
            out = norm(leaf, counts, relu)
        else:
            scale, shift = norm.affine(masked_moments(leaf, mask))
            out = leaf * scale + shift
            out = (out.relu() if relu else out).masked_fill(~mask, 0)
        (out * upstream).sum().backward()
        values = [out.detach(), leaf.grad, norm.weight.grad, norm.bias.grad]
        found.append([*values, norm.running_mean, norm.running_var])
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)
