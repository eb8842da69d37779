"""The DS-LSTM layer on a GPU: parity, times, candidates, profile, graphs."""

import json
import statistics
import time
import traceback

import gpu_variants
import torch
from gpu_variants import cublas_loop, group, walk_with

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm import kernel_triton
from speechbrain_dslstm.ds_lstm.backends import BACKENDS
from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive

__all__ = ["PARTS"]

# Largest error in units of the largest value
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
NAMES = "out h c x y h0 c0 weight_x weight_y weight_h bias".split()
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SIZE_X, SIZE_Y = 496, 1008
# Items, units, warps and precision of a candidate, forward and backward
GROUPS = {
    torch.float32: {
        "group A": ((16, 16, 8, "tf32x3"), (16, 16, 8, "tf32x3")),
        "group B": ((16, 16, 8, "bf16x6"), (16, 16, 8, "bf16x6")),
        "group C": ((32, 8, 8, "tf32x3"), (32, 8, 8, "tf32x3")),
    },
    torch.bfloat16: {
        "group A": ((16, 16, 8, "ieee"), (16, 16, 8, "ieee")),
        "group D": ((16, 16, 4, "ieee"), (16, 16, 4, "ieee")),
    },
}


# Options to try: of the present kernel, forward and backward, and of groups
OLD = {
    torch.float32: [
        [(4, 64, 32, 8, 3), (4, 32, 32, 4, 4), (2, 64, 32, 4, 3)],
        [(4, 64, 32, 8, 3), (4, 32, 64, 4, 3), (2, 64, 64, 4, 3)],
    ],
    torch.bfloat16: [
        [(16, 64, 64, 8, 3), (16, 32, 128, 8, 3), (16, 128, 32, 8, 3)],
        [(16, 64, 128, 8, 3), (16, 128, 64, 8, 4), (16, 32, 128, 4, 4)],
    ],
}
NEW = {
    torch.float32: [
        (16, 16, 8, "tf32x3"), (16, 16, 8, "bf16x6"), (32, 8, 8, "tf32x3"),
        (32, 8, 8, "bf16x6"), (32, 16, 8, "tf32x3"), (16, 16, 16, "tf32x3"),
        (16, 16, 8, "tf32"),
    ],
    torch.bfloat16: [
        (16, 16, 8, "ieee"), (16, 16, 4, "ieee"), (32, 8, 8, "ieee"),
        (32, 8, 4, "ieee"), (32, 16, 8, "ieee"), (16, 32, 8, "ieee"),
    ],
}  # fmt: skip


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


def backends(dtype, options):
    """Every way to run the recurrence here with this type, if it is right."""
    names = ["triton", "fused", "eager"][options.device == "cpu" :]
    found = {name: BACKENDS[name] for name in names}
    groups = candidates(dtype, options)
    path = options.output / "gpu.jsonl"
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["part"].startswith("parity") and row["type"] == SHORT[dtype]:
            if row["backend"] in groups and row["ok"]:
                found[row["backend"]] = groups[row["backend"]]
    return found


def candidates(dtype, options):
    """The candidates that run here."""
    if options.device == "cpu":
        return {}
    return {name: group(*blocks) for name, blocks in GROUPS[dtype].items()}


def parity(options):
    """Hold the backends to the reference in float64 on the CPU."""
    names = ["triton", "fused", "eager"][options.device == "cpu" :]
    yield from hold(
        options, lambda dtype: {name: BACKENDS[name] for name in names}
    )


def parity_groups(options):
    """Hold the candidates to the same; one that waits for ever ends the part."""
    yield from hold(options, lambda dtype: candidates(dtype, options))


def hold(options, ways):
    """Compare outputs, states and gradients of some ways with the reference."""
    shapes = [
        (3, 63, 11, 13, 200),
        (3, 63, 11, 13, 128),
        (17, 21, 9, 7, 33),
        (37, 9, 9, 7, 256),
        (1, 1, 2, 3, 1),
        (128, 50, 496, 1008, 200),
    ]
    device, failed = options.device, set()
    for shape in shapes[:: 3 if options.quick else 1]:
        for dtype in (torch.float32, torch.bfloat16):
            args = arguments(shape, dtype, "cpu")
            for ragged in (True, False):
                if shape[0] == 128 and ragged:
                    continue
                counts = None
                if ragged:
                    counts = torch.linspace(0, shape[1], shape[0]).long()
                    counts[::3] = shape[1]
                expected = results(ds_lstm_naive, args, counts, torch.float64)
                there = [arg.to(device) for arg in args]
                if ragged:
                    counts = counts.to(device)
                for name, run in ways(dtype).items():
                    row = {
                        "backend": name,
                        "type": SHORT[dtype],
                        "B,T,X,Y,H": str(shape),
                        "ragged": ragged,
                    }
                    if (name, dtype, "broken") in failed:
                        yield {**row, "ok": False, "worst": "as above"}
                        continue
                    try:
                        found = results(run, there, counts, dtype)
                    except Exception as error:
                        traceback.print_exc()
                        failed.add((name, dtype, "broken"))
                        yield {**row, "ok": False, "worst": repr(error)[:200]}
                        continue
                    errors = {
                        key: float(
                            (ours - theirs).abs().max()
                            / theirs.abs().max().clamp(min=1e-6)
                        )
                        for key, ours, theirs in zip(
                            NAMES, found, expected, strict=True
                        )
                    }
                    worst = max(errors, key=lambda key: errors[key])
                    # NaN fails, too
                    ok = all(
                        error <= TOLERANCE[dtype] for error in errors.values()
                    )
                    if not ok:
                        print(row, errors, flush=True)
                    yield {
                        **row,
                        "ok": ok,
                        "worst": f"{worst} {errors[worst]:.1e}",
                    }


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
    """Time every backend against cuDNN."""
    sizes = [
        (batch, steps, 200)
        for steps in (50, 200, 1000)
        for batch in (128, 16, 1)
    ]
    sizes.insert(4, (128, 200, 128))
    if options.quick:
        sizes = [(2, 5, 16)]
    sizes.sort(key=lambda size: (size[1], -size[0]))
    for batch, steps, hidden in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            for training in (True, False):
                runs = backends(dtype, options)
                if steps > 50:
                    del runs["eager"]
                if steps > 200:
                    del runs["fused"]
                calls = layer_calls(
                    batch, steps, hidden, dtype, training, runs, options.device
                )
                found = milliseconds(
                    calls, 0.02 if options.quick else 0.4, options.device
                )
                yield {
                    "mode": "training" if training else "inference",
                    "B": batch,
                    "T": steps,
                    "H": hidden,
                    "type": SHORT[dtype],
                    **{f"{name}, ms": value for name, value in found.items()},
                    "triton / nn.LSTM": found.get("triton", float("nan"))
                    / found["nn.LSTM"],
                    "best / nn.LSTM": min(
                        value
                        for name, value in found.items()
                        if name != "nn.LSTM" and value == value
                    )
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


def kernel_calls(hidden, dtype):
    """The recurrence alone at batch 128, T 200, both ways by every candidate."""
    args = arguments((128, 200, 4, 4, hidden), dtype, "cuda")
    projected = torch.randn(200, 128, 6 * hidden, device="cuda", dtype=dtype)
    h0, c0, weight = args[2], args[3], args[6]

    def walk(keep):
        return kernel_triton._walk(projected, h0, c0, weight, None, keep)

    states, h_n, c_n, act, cells = walk(True)
    grads = [torch.randn_like(states), h_n, c_n]
    ahead = {
        "as it is": lambda: walk(True),
        "as it is, inference": lambda: walk(False),
    }
    back = {
        "as it is": lambda: kernel_triton._walk_back(
            *grads, weight, None, act, cells
        )
    }
    for index, calls in enumerate((ahead, back)):
        base = calls["as it is"]
        for sizes in OLD[dtype][index] if hidden == 200 else []:
            calls[f"old {sizes}"] = walk_with(sizes, index)(base)
    for blocks in NEW[dtype]:
        ahead[f"group {blocks}"] = lambda blocks=blocks: gpu_variants.forward(
            projected, h0, c0, weight, None, True, blocks
        )
        back[f"group {blocks}"] = lambda blocks=blocks: gpu_variants.backward(
            *grads, weight, None, act, cells, blocks
        )
    return {"forward": ahead, "backward": back}


def graph_calls(hidden, dtype):
    """Inference at batch 128, T 200, with few inputs: what a graph can hold."""
    args = arguments((128, 200, 4, 4, hidden), dtype, "cuda")
    lstm = torch.nn.LSTM(8, hidden, batch_first=True).to("cuda", dtype)
    both = torch.cat(args[:2], -1)
    return {
        "cuDNN, 8 inputs": lambda: lstm(both),
        "cuBLAS and a fused kernel": lambda: cublas_loop(*args),
        "fused": lambda: BACKENDS["fused"](*args)[0],
    }


def variants(options):
    """Time every candidate for the recurrence, and loops in CUDA graphs."""
    if options.device == "cpu":
        return
    for hidden in (200, 128):
        for dtype in (torch.float32, torch.bfloat16):
            row = {"H": hidden, "type": SHORT[dtype]}
            for mode, calls in kernel_calls(hidden, dtype).items():
                found = milliseconds(calls, 0.3, "cuda")
                for name, value in found.items():
                    yield {
                        "kernel": mode,
                        **row,
                        "options": name,
                        "ms": value,
                        "us a step": 5 * value,
                    }
            for name, call in graph_calls(hidden, dtype).items():
                try:
                    with torch.no_grad():
                        graph = captured(call)
                        taken = milliseconds({name: graph.replay}, 0.2, "cuda")
                        taken = taken[name]
                except Exception:
                    traceback.print_exc()
                    taken = float("nan")
                yield {
                    "kernel": "inference in a graph",
                    **row,
                    "options": name,
                    "ms": taken,
                    "us a step": 5 * taken,
                }


def profile(options):
    """Print where the time of a training step goes, batch 128, T 200."""
    from torch.profiler import ProfilerActivity, profile as record

    cuda = options.device == "cuda"
    batch, steps = (128, 200) if cuda else (2, 5)
    for dtype in (torch.float32, torch.bfloat16):
        names = {"triton": BACKENDS["triton"]} if cuda else {}
        names = names or {"fused": BACKENDS["fused"]}
        if cuda:
            name, (ahead, back) = next(iter(GROUPS[dtype].items()))
            names[name] = group(ahead, back)
        calls = layer_calls(
            batch, steps, 200, dtype, True, names, options.device
        )
        for name, call in calls.items():
            try:
                call()
                synchronize(options.device)
                kinds = [ProfilerActivity.CPU]
                kinds += [ProfilerActivity.CUDA] if cuda else []
                with record(activities=kinds) as found:
                    call()
                    synchronize(options.device)
            except Exception:
                traceback.print_exc()
                continue
            print(f"## {name}, {SHORT[dtype]}")
            average = found.key_averages()
            key = "self_device_time_total" if cuda else "self_cpu_time_total"
            shown = sorted(average, key=lambda event: -getattr(event, key))
            for event in shown[:9]:
                value = getattr(event, key)
                if value:
                    yield {
                        "way": name,
                        "type": SHORT[dtype],
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
    "parity": (parity, 90),
    "parity_groups": (parity_groups, 70),
    "times": (times, 110),
    "variants": (variants, 80),
    "graphs": (graphs, 25),
    "profile": (profile, 25),
}
