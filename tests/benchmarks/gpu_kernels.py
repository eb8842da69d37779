"""The DS-LSTM layer on a GPU: parity, times, candidates, profile, graphs."""

import statistics
import time
import traceback
from contextlib import contextmanager

import torch

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm import kernel_triton
from speechbrain_dslstm.ds_lstm.backends import BACKENDS
from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
from speechbrain_dslstm.ds_lstm.kernel_triton import Plan

__all__ = ["PARTS", "captured", "milliseconds", "products", "synchronize"]

# "fp32" is exact; SpeechBrain lets torch and cuDNN use "tf32" for float32
KINDS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}
# Largest error in units of the largest value
TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 0.02}
NAMES = "out h c x y h0 c0 weight_x weight_y weight_h bias".split()
SIZE_X, SIZE_Y = 496, 1008
# Other plans to try, forward and backward
PLANS = {
    "fp32": [
        Plan(16, 8, "tf32x3"),
        Plan(32, 8, "tf32x3"),
        Plan(16, 8, "bf16x6"),
    ],
    "tf32": [Plan(16, 8, "tf32"), Plan(32, 8, "tf32"), Plan(32, 16, "tf32")],
    "bf16": [Plan(16, 8, "ieee"), Plan(32, 8, "ieee"), Plan(32, 16, "ieee")],
}


@contextmanager
def products(kind):
    """Let torch and cuDNN use tf32 only for this kind."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    usual = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = usual


def arguments(shape, dtype, device):
    """Random arguments of a backend."""
    batch, steps, size_x, size_y, hidden = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = [(batch, steps, size_x), (batch, steps, size_y)]
    sizes += [(batch, hidden)] * 2 + [(5 * hidden, size_x)]
    sizes += [(5 * hidden, size_y), (6 * hidden, hidden), (6 * hidden,)]
    scales = [1, 1, 1, 1] + [hidden**-0.5] * 4
    scales[4], scales[5] = size_x**-0.5, size_y**-0.5
    return [
        (torch.randn(size, generator=generator) * scale).to(device, dtype)
        for size, scale in zip(sizes, scales, strict=True)
    ]


def results(backend, args, counts, dtype):
    """Outputs, states and every gradient, as float64 on the CPU."""
    args = [arg.detach().to(dtype).requires_grad_() for arg in args]
    found = backend(*args, counts)
    loss = 0
    for value in found:
        ramp = torch.linspace(-1, 1, value.numel(), dtype=torch.float64)
        ramp = ramp.view(value.shape).to(value)
        loss = loss + (value * ramp).sum()
    grads = torch.autograd.grad(loss, args)
    return [value.detach().cpu().double() for value in [*found, *grads]]


def parity(options, kinds):
    """Hold the backends to the reference in float64 on the CPU."""
    shapes = [
        (3, 63, 11, 13, 200),
        (3, 63, 11, 13, 128),
        (17, 21, 9, 7, 33),
        (37, 9, 9, 7, 256),
        (1, 1, 2, 3, 1),
        (128, 50, 496, 1008, 200),
        (300, 7, 5, 6, 200),
    ]
    names = ["triton", "fused", "eager"][options.device == "cpu" :]
    for shape in shapes[:: 4 if options.quick else 1]:
        for kind in kinds:
            dtype = KINDS[kind]
            args = arguments(shape, dtype, "cpu")
            for ragged in (True, False)[shape[0] > 99 :]:
                counts = None
                if ragged:
                    counts = torch.linspace(0, shape[1], shape[0]).long()
                    counts[::3] = shape[1]
                expected = results(ds_lstm_naive, args, counts, torch.float64)
                there = [arg.to(options.device) for arg in args]
                if ragged:
                    counts = counts.to(options.device)
                for name in names:
                    row = {
                        "backend": name,
                        "type": kind,
                        "B,T,X,Y,H": str(shape),
                        "ragged": ragged,
                    }
                    with products(kind):
                        yield {
                            **row,
                            **hold(name, there, counts, kind, expected),
                        }


def hold(name, args, counts, kind, expected):
    """Errors of one backend: whether they are small, and the largest."""
    try:
        found = results(BACKENDS[name], args, counts, KINDS[kind])
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "worst": repr(error)[:200]}
    errors = {
        key: float(
            (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
        )
        for key, ours, theirs in zip(NAMES, found, expected, strict=True)
    }
    worst = max(errors, key=lambda key: errors[key])
    # NaN fails, too
    ok = all(error <= TOLERANCE[kind] for error in errors.values())
    if not ok:
        print(name, kind, errors, flush=True)
    return {"ok": ok, "worst": f"{worst} {errors[worst]:.1e}"}


def parity_fp32(options):
    """float32, exact and with tf32."""
    yield from parity(options, ["fp32", "tf32"])


def parity_bf16(options):
    """bfloat16."""
    yield from parity(options, ["bf16"])


def milliseconds(calls, seconds, device, least=3, most=40):
    """Median time of each call, in turns; NaN for one that fails."""
    good = {}
    for name, call in calls.items():
        try:
            call()
            call()
            good[name] = []
        except Exception:
            traceback.print_exc()
    synchronize(device)
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for name, taken in good.items():
            taken.append(once(calls[name], device))
    return {
        name: statistics.median(good[name]) if name in good else float("nan")
        for name in calls
    }


def synchronize(device):
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def once(call, device):
    """Milliseconds of one call."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def layer_calls(batch, steps, hidden, dtype, training, runs, device):
    """A call of each way, and of nn.LSTM with the same input and hidden size."""
    shape = (batch, steps, SIZE_X, SIZE_Y, hidden)
    args = arguments(shape, dtype, device)
    both = torch.cat(args[:2], -1)
    lstm = torch.nn.LSTM(SIZE_X + SIZE_Y, hidden, batch_first=True)
    lstm = lstm.to(device, dtype)
    lstm.flatten_parameters()
    if not training:
        calls = {
            name: torch.no_grad()(lambda run=run: run(*args))
            for name, run in runs.items()
        }
        calls["nn.LSTM"] = torch.no_grad()(lambda: lstm(both))
        return calls
    leaves = [args[k].requires_grad_() for k in (0, 1, 4, 5, 6, 7)]
    both.requires_grad_()
    ones = torch.ones(batch, steps, hidden, dtype=dtype, device=device)

    def step(run):
        out = run(*args)[0]
        return torch.autograd.grad(out, leaves, ones)

    def other():
        return torch.autograd.grad(
            lstm(both)[0], [both, *lstm.parameters()], ones
        )

    calls = {name: lambda run=run: step(run) for name, run in runs.items()}
    return {**calls, "nn.LSTM": other}


def times(options):
    """Time the backends against cuDNN."""
    sizes = [
        (batch, steps, 200)
        for steps in (50, 200, 1000)
        for batch in (128, 16, 1)
    ]
    sizes.insert(4, (128, 200, 128))
    if options.quick:
        sizes = [(2, 5, 16)]
    for batch, steps, hidden in sizes:
        for kind, dtype in KINDS.items():
            for training in (True, False):
                names = ["triton", "fused"][options.device == "cpu" :]
                if (batch, steps) == (128, 1000):
                    names.remove("fused")
                calls = layer_calls(
                    batch, steps, hidden, dtype, training,
                    {name: BACKENDS[name] for name in names}, options.device,
                )  # fmt: skip
                seconds = 0.02 if options.quick else 0.2
                with products(kind):
                    found = milliseconds(calls, seconds, options.device)
                yield {
                    "mode": "training" if training else "inference",
                    "B": batch,
                    "T": steps,
                    "H": hidden,
                    "type": kind,
                    **{f"{name}, ms": value for name, value in found.items()},
                    "triton / nn.LSTM": found.get("triton", float("nan"))
                    / found["nn.LSTM"],
                }
                if options.device == "cuda":
                    del calls
                    torch.cuda.empty_cache()


def captured(call):
    """A call in a CUDA graph; returns the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.found = call()
    return graph


def kernel_calls(batch, hidden, dtype, plans):
    """The recurrence alone at T 200, both ways, by every plan."""
    args = arguments((batch, 200, 4, 4, hidden), dtype, "cuda")
    projected = torch.randn(200, batch, 6 * hidden, device="cuda", dtype=dtype)
    h0, c0, weight = args[2], args[3], args[6]

    def walk(keep=True):
        return kernel_triton._walk(projected, h0, c0, weight, None, keep)

    states, h_n, c_n, act, cells = walk()
    grads = [torch.randn_like(states), h_n, c_n]

    def walk_back():
        return kernel_triton._walk_back(*grads, weight, None, act, cells)

    ahead = {"chosen": walk, "chosen, inference": lambda: walk(False)}
    back = {"chosen": walk_back}
    for plan in plans:
        ahead[str(tuple(plan))] = with_plan(plan, walk)
        back[str(tuple(plan))] = with_plan(plan, walk_back)
    return {"forward": ahead, "backward": back}


def with_plan(plan, run):
    """A call that uses this plan, whatever the machine and the sizes."""

    def call():
        usual = kernel_triton.find_plan
        kernel_triton.find_plan = lambda *sizes: plan
        try:
            return run()
        finally:
            kernel_triton.find_plan = usual

    return call


def variants(options):
    """Time every plan for the recurrence."""
    if options.device == "cpu":
        return
    for batch, hidden in ((128, 200), (128, 128), (16, 200)):
        for kind, dtype in KINDS.items():
            with products(kind):
                calls = kernel_calls(batch, hidden, dtype, PLANS[kind])
                for mode, ways in calls.items():
                    found = milliseconds(ways, 0.15, "cuda")
                    for name, value in found.items():
                        yield {
                            "kernel": mode,
                            "B": batch,
                            "H": hidden,
                            "type": kind,
                            "items, units": name,
                            "ms": value,
                            "us a step": 5 * value,
                        }


def profile(options):
    """Print where the time of a training step goes, batch 128, T 200."""
    from torch.profiler import ProfilerActivity, profile as record

    cuda = options.device == "cuda"
    batch, steps = (128, 200) if cuda else (2, 5)
    for kind, dtype in KINDS.items():
        name = "triton" if cuda else "fused"
        calls = layer_calls(
            batch, steps, 200, dtype, True, {name: BACKENDS[name]},
            options.device,
        )  # fmt: skip
        for name, call in calls.items():
            try:
                call()
                synchronize(options.device)
                kinds = [ProfilerActivity.CPU]
                kinds += [ProfilerActivity.CUDA] if cuda else []
                with products(kind), record(activities=kinds) as found:
                    call()
                    synchronize(options.device)
            except Exception:
                traceback.print_exc()
                continue
            average = found.key_averages()
            key = "self_device_time_total" if cuda else "self_cpu_time_total"
            shown = sorted(average, key=lambda event: -getattr(event, key))
            for event in shown[:8]:
                value = getattr(event, key)
                if value:
                    yield {
                        "way": name,
                        "type": kind,
                        "kernel": event.key[:70],
                        "calls": event.count,
                        "ms": value / 1e3,
                    }


def graphs(options):
    """Capture the layer, forward and training, and replay on other values."""
    if options.device == "cpu":
        return
    for training in (False, True):
        for batch, steps in ((1, 50), (16, 200), (128, 200)):
            net = DSLSTM(SIZE_X, SIZE_Y, 200, num_layers=2).cuda()
            x = torch.randn(batch, steps, SIZE_X, device="cuda")
            y = torch.randn(batch, steps, SIZE_Y, device="cuda")
            counts = torch.full((batch,), steps, device="cuda")

            def run(net=net, x=x, y=y, counts=counts, training=training):
                with torch.set_grad_enabled(training):
                    out, (h, c) = net(x, y, counts)
                    if not training:
                        return [out, h, c]
                    loss = out.square().sum() + c.sum()
                    grads = torch.autograd.grad(loss, list(net.parameters()))
                    return [out, *grads]

            graph = captured(run)
            x.mul_(-0.5)
            counts.copy_(torch.linspace(1, steps, batch))
            graph.replay()
            error = max(
                float((a - b).abs().max() / b.abs().max())
                for a, b in zip(graph.found, run(), strict=True)
            )
            found = milliseconds(
                {"graph": graph.replay, "plain": run}, 0.3, "cuda"
            )
            yield {
                "graph of": "training" if training else "inference",
                "B": batch,
                "T": steps,
                "error": error,
                "replay, ms": found["graph"],
                "eager, ms": found["plain"],
            }


PARTS = {
    "parity_fp32": (parity_fp32, 80),
    "parity_bf16": (parity_bf16, 80),
    "times": (times, 75),
    "variants": (variants, 50),
    "graphs": (graphs, 22),
    "profile": (profile, 25),
}
