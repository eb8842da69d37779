"""The triton backend: on a GPU, or else under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so without a GPU the tests
that run kernels do so in a process of their own, which this file starts on
itself. That the kernels compile for GPUs is seen on any machine.
"""

import itertools
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm import ds_lstm_naive, kernel_triton
from speechbrain_dslstm.ds_lstm.backends import choose_backend
from speechbrain_dslstm.ds_lstm.kernel_triton import ds_lstm_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
# float32 sums in another order; bfloat16 keeps 8 bits of gates and gradients
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# batch, time, input_x, input_y, hidden: more than one block of items and units
# of either type. On a GPU the paper's hidden size, too
SHAPES = [
    (3, 4, 5, 4, 10),
    (17, 3, 3, 2, 33),
    (1, 1, 2, 3, 1),
    (2, 2, 4, 3, 65),
]
SHAPES += [(3, 63, 11, 13, 200), (33, 21, 9, 7, 256)] if GPU else []
KERNELS = ["forward", "backward"]
# Of a GPU for games, and of an H100
SMALL = kernel_triton.Machine(processors=46, shared=101376)
LARGE = kernel_triton.Machine(processors=132, shared=232448)


@pytest.fixture(autouse=True, scope="module")
def repaired_interpreter():
    """Repair three differences of Triton 3.6's interpreter from a GPU.

    It multiplies the bits of bfloat16 as if they were whole numbers, cuts
    them off where a GPU rounds, and cannot count up to a number of the kernel
    with NumPy 2.4, which makes no scalar of an array of one.
    """
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot, convert = builder.create_dot, interpreter._convert_float
    patch_tensor = interpreter._patch_lang_tensor

    def widened(value):
        if value.dtype.scalar != tl.bfloat16:
            return value
        bits = value.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def wide_dot(self, left, right, *rest):
        return dot(self, widened(left), widened(right), *rest)

    def rounding(values, source, to, mode):
        if (source, to) != (tl.float32, tl.bfloat16):
            return convert(values, source, to, mode)
        values = torch.from_numpy(np.ascontiguousarray(values))
        return values.bfloat16().view(torch.uint16).numpy()

    def countable(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda v: v.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", wide_dot)
        patch.setattr(interpreter, "_convert_float", rounding)
        patch.setattr(interpreter, "_patch_lang_tensor", countable)
        yield


@pytest.fixture(autouse=True)
def may_use_tf32():
    """Says whether torch may; at first not, though SpeechBrain lets it."""
    usual = torch.backends.cuda.matmul.allow_tf32

    def may(allowed):
        torch.backends.cuda.matmul.allow_tf32 = allowed

    may(False)
    yield may
    may(usual)


def arguments(shape, dtype=torch.float32):
    """Random arguments of a backend, in what ``dtype`` can hold."""
    batch, time, size_x, size_y, hidden = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, time, size_x), (batch, time, size_y)]
    sizes += [(batch, hidden)] * 2 + [(5 * hidden, size_x)]
    sizes += [(5 * hidden, size_y), (6 * hidden, hidden), (6 * hidden,)]
    return [
        (torch.randn(size, generator=generator) * hidden**-0.5).to(dtype)
        for size in sizes
    ]


def results(backend, args, counts, device, dtype):
    """Outputs, states and all gradients of one backend, as float32."""
    args = [arg.to(device, dtype, copy=True).requires_grad_() for arg in args]
    counts = None if counts is None else counts.to(device)
    found = backend(*args, counts)
    assert all(value.dtype == dtype for value in found)
    # Different weights for each value, so that no gradient cancels
    loss = 0
    for value in found:
        ramp = torch.linspace(-1, 1, value.numel()).view(value.shape)
        loss = loss + (value * ramp.to(value)).sum()
    loss.backward()
    found = [*found, *(arg.grad for arg in args)]
    return [value.detach().float().cpu() for value in found]


def assert_near(ours, theirs, tolerance):
    """Compare relative to the largest value, if that is above 1."""
    torch.testing.assert_close(
        ours,
        theirs,
        atol=tolerance * max(1.0, theirs.abs().max().item()),
        rtol=0,
    )


class Phase(NamedTuple):
    """Addresses that one program touches between two barriers."""

    launch: int
    program: int
    reads: set
    writes: set


def record_memory(monkeypatch):
    """A list that grows by a phase at every barrier."""
    from triton.runtime import interpreter

    builder, phases = interpreter.InterpreterBuilder, []
    originals = {
        name: getattr(builder, name)
        for name in (
            "set_grid_dim", "set_grid_idx", "create_barrier",
            "create_masked_load", "create_masked_store",
        )
    }  # fmt: skip

    def begin(launch, program):
        phases.append(Phase(launch, program, set(), set()))

    def set_grid_dim(self, *sizes):
        begin(phases[-1].launch + 1 if phases else 0, 0)
        return originals["set_grid_dim"](self, *sizes)

    def set_grid_idx(self, program, *rest):
        begin(phases[-1].launch, program)
        return originals["set_grid_idx"](self, program, *rest)

    def create_barrier(self):
        begin(*phases[-1][:2])
        return originals["create_barrier"](self)

    def create_masked_load(self, pointers, mask, *rest):
        phases[-1].reads.update(pointers.data[mask.data.astype(bool)].tolist())
        return originals["create_masked_load"](self, pointers, mask, *rest)

    def create_masked_store(self, pointers, value, mask, *rest):
        phases[-1].writes.update(pointers.data[mask.data.astype(bool)].tolist())
        return originals["create_masked_store"](
            self, pointers, value, mask, *rest
        )

    for replacement in (
        set_grid_dim, set_grid_idx, create_barrier,
        create_masked_load, create_masked_store,
    ):  # fmt: skip
        monkeypatch.setattr(builder, replacement.__name__, replacement)
    return phases


class TestKernels:
    """The kernels against the equations, on a GPU or interpreted."""

    __test__ = GPU or INTERPRETED

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize(
        ("shape", "ragged"),
        [(shape, True) for shape in SHAPES]
        + [(shape, False) for shape in SHAPES[::3]],
    )
    def test_equal_equations(self, shape, ragged, dtype):
        args = arguments(shape, dtype)
        counts = None
        if ragged:
            counts = torch.linspace(1, shape[1], shape[0]).round().long()
            # Early and late ends in one block
            counts[::3] = counts.max()
        expected = results(ds_lstm_naive, args, counts, "cpu", torch.float32)
        found = results(ds_lstm_triton, args, counts, DEVICE, dtype)
        for ours, theirs in zip(found, expected, strict=True):
            assert_near(ours, theirs, TOLERANCE[dtype])
        if ragged:
            padded = torch.arange(shape[1]) >= counts.unsqueeze(1)
            assert (found[0][padded] == 0).all()
            assert (found[3][padded] == 0).all()

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_inference_keeps_nothing_and_is_the_same(self, dtype):
        args = [v.to(DEVICE) for v in arguments((5, 3, 3, 4, 10), dtype)]
        counts = torch.tensor([3, 1, 3, 2, 2], device=DEVICE)
        with torch.no_grad():
            found = ds_lstm_triton(*args, counts)
            _, _, _, act, cells = kernel_triton._walk(
                args[0].new_zeros(3, 5, 60), *args[2:4], args[6], None, False
            )
        assert len(act) == 0 and len(cells) == 1
        args[6].requires_grad_()
        expected = ds_lstm_triton(*args, counts)
        for ours, theirs in zip(found, expected, strict=True):
            assert theirs.requires_grad and not ours.requires_grad
            torch.testing.assert_close(ours, theirs.detach(), atol=0, rtol=0)

    def test_garbage_in_the_padding_and_no_step_at_all(self):
        args = [v.to(DEVICE) for v in arguments((3, 4, 3, 2, 5))]
        counts = torch.tensor([2, 0, 4], device=DEVICE)
        expected = ds_lstm_triton(*args, counts)
        args[0][0, 2:] = args[1][0, 2:] = float("nan")
        found = ds_lstm_triton(*args, counts)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
        torch.testing.assert_close(found[1][1], args[2][1], atol=0, rtol=0)
        torch.testing.assert_close(found[2][1], args[3][1], atol=0, rtol=0)

    def test_strided_inputs_and_two_backward_passes(self):
        args = [v.to(DEVICE) for v in arguments((3, 4, 3, 2, 5))]
        turned = [v.t().contiguous().t() if v.dim() == 2 else v for v in args]
        assert not turned[2].is_contiguous() and not turned[6].is_contiguous()
        found = []
        for leaves in (args, turned):
            leaves = [v.requires_grad_() for v in leaves]
            out, _, _ = ds_lstm_triton(*leaves)
            # A gradient that is not laid out as the output is, and none of c
            loss = (out * out).sum() + out[:, -1].sum()
            found.append(torch.autograd.grad(loss, leaves, retain_graph=True))
            found.append(torch.autograd.grad(loss, leaves))
        for values in zip(*found, strict=True):
            for value in values[1:]:
                torch.testing.assert_close(value, values[0])

    @pytest.mark.parametrize("kind", ["column", "expanded"])
    def test_strided_lengths(self, kind):
        args = [v.to(DEVICE) for v in arguments((3, 4, 3, 2, 5))]
        table = torch.tensor([[4, 0], [2, 0], [1, 0]], device=DEVICE)
        counts = table[:, 0]
        if kind == "expanded":
            counts = table[1, 0].expand(3)
        assert counts.stride() != (1,)
        found = ds_lstm_triton(*args, counts)
        expected = ds_lstm_naive(*args, counts)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_second_derivatives_are_refused(self):
        args = [v.to(DEVICE) for v in arguments((2, 2, 3, 2, 3))]
        args[0].requires_grad_()
        out, _, _ = ds_lstm_triton(*args)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(out.sum(), args[0], create_graph=True)

    def test_operator_and_compiled_layer(self):
        """No shape and no branch depends on the values of a tensor."""
        shape = (3, 2, 4, 5, 6)
        _, _, *args = (v.to(DEVICE) for v in arguments(shape))
        h0, c0, weight = (args[k].requires_grad_() for k in (0, 1, 4))
        projected = torch.randn(2, 3, 36, device=DEVICE, requires_grad=True)
        torch.library.opcheck(
            kernel_triton._walk, (projected, h0, c0, weight, None, True)
        )
        net = DSLSTM(4, 5, 6, backend="triton").to(DEVICE)
        x = torch.randn(3, 2, 4, device=DEVICE)
        y = torch.randn(3, 2, 5, device=DEVICE)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        gradients = []
        for run in (net, compiled):
            out, (_, c) = run(x, y)
            net.zero_grad()
            (out.sum() + c.sum()).backward()
            gradients.append([v.grad for v in net.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_under_autocast_states_keep_the_precision(self):
        net = DSLSTM(4, 5, 6, backend="triton").to(DEVICE)
        x = torch.randn(3, 4, 4, device=DEVICE)
        y = torch.randn(3, 4, 5, device=DEVICE)
        expected, _ = net(x, y)
        with torch.autocast(DEVICE, torch.bfloat16):
            out, _ = net(x.bfloat16(), y.bfloat16())
            out.sum().backward()
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
        assert net.weight_h_l0.grad.dtype == torch.float32


class TestInterpreter:
    """Properties that only the interpreter shows."""

    __test__ = INTERPRETED

    def test_a_barrier_parts_what_is_written_from_what_is_read(
        self, monkeypatch
    ):
        """Between two barriers the threads of a program run in any order."""
        phases = record_memory(monkeypatch)
        counts = torch.tensor([2, 1] * 9)
        args = arguments((18, 2, 2, 3, 65))
        ds_lstm_triton(*args, counts)
        results(ds_lstm_triton, args, counts, "cpu", torch.float32)
        phases = [phase for phase in phases if phase.reads or phase.writes]
        # 5 programs for each of 2 groups; before and after the barrier of each
        # step; backwards, one more step without a barrier
        assert len(phases) == 10 * (2 * 2 + 2 * 2 + 2 * 2 + 1)
        for phase in phases:
            assert phase.writes and not phase.reads & phase.writes
        for one, other in itertools.permutations(phases, 2):
            if one.launch == other.launch and one.program != other.program:
                assert not one.writes & (other.reads | other.writes)


class TestGPU:
    """Properties that only a GPU shows."""

    __test__ = GPU

    def test_chosen_by_itself(self):
        like = torch.zeros(5, 3, device="cuda")
        assert choose_backend(like=like)[:2] == (
            "triton",
            "auto: the fastest here",
        )
        assert choose_backend(gate_norm=True, like=like)[:2] == (
            "eager",
            "auto: triton has no gate norm",
        )
        half = choose_backend(like=like.half())
        assert half.name == "fused" and "float16" in half.reason

    def test_cuda_graph(self):
        """Capture once, replay on other values and lengths."""
        net = DSLSTM(5, 4, 200, num_layers=2, bidirectional=True).cuda()
        x = torch.randn(9, 12, 5, device="cuda")
        y = torch.randn(9, 12, 4, device="cuda")
        counts = torch.full((9,), 12, device="cuda")

        def step():
            out, (h, c) = net(x, y, counts)
            loss = out.square().sum() + h.sum() + c.sum()
            return [out, *torch.autograd.grad(loss, net.parameters())]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        x.mul_(-0.5)
        counts.copy_(torch.arange(4, 13))
        graph.replay()
        for ours, theirs in zip(captured, step(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class TestAnyMachine:
    """Tests that need neither a GPU nor the interpreter."""

    __test__ = not INTERPRETED

    def test_kernels_under_the_interpreter(self):
        command = [sys.executable, "-m", "pytest", "-q", __file__]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "skipped" not in run.stdout, run.stdout

    @pytest.mark.parametrize("kind", ["bf16", "fp32", "tf32"])
    @pytest.mark.parametrize("name", KERNELS)
    @pytest.mark.parametrize(
        ("architecture", "machine", "hidden"),
        [
            (80, SMALL, 200),
            (80, SMALL, 224),
            (90, LARGE, 200),
            (90, LARGE, 256),
        ],
    )
    def test_compiles_for_a_gpu(
        self, architecture, machine, name, kind, hidden, tmp_path, monkeypatch,
        may_use_tf32,
    ):  # fmt: skip
        """Its weights find room in shared memory; no GPU is needed."""
        triton = pytest.importorskip("triton")
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        may_use_tf32(kind == "tf32")
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        back = name == "backward"
        plan = kernel_triton.find_plan(machine, dtype, hidden, 128, back)
        constants = {
            "H": hidden,
            "RAGGED": True,
            "SLICES": -(-hidden // plan.units),
            "BLOCK_B": plan.items,
            "UNITS": plan.units,
            "PRECISION": plan.precision,
        }
        if back:
            constants["WIDE"] = 256
        else:
            constants.update(
                KEEP=True, K1=64, K2={200: 16, 224: 32, 256: 64}[hidden]
            )
        kernel = getattr(kernel_triton.LOOPS.load(), name)
        number = "bf16" if kind == "bf16" else "fp32"
        kinds = dict.fromkeys(kernel.arg_names, f"*{number}")
        for key in ("batch", "time", "first_group", "begin", "end"):
            kinds[key] = "i32"
        for key in ("cells", "shares", "grad_c"):
            kinds[key] = "*fp32"
        kinds.update(counts="*i64", ready="*i32")
        kinds.update(dict.fromkeys(constants, "constexpr"))
        places = {key: k for k, key in enumerate(kernel.arg_names)}
        kinds = {key: kinds[key] for key in kernel.arg_names}
        source = ASTSource(
            kernel,
            kinds,
            {(places[key],): value for key, value in constants.items()},
            {
                (places[key],): [["tt.divisibility", 16]]
                for key, kind in kinds.items()
                if kind.startswith("*")
            },
        )
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": kernel_triton.WARPS, "num_stages": 1},
        )
        assert compiled.metadata.shared <= machine.shared
        code = compiled.asm["ptx"]
        # Tensor cores; of what others write, nothing that L1 may hold
        assert "mma.sync" in code and "ld.global.cg" in code
        assert "ld.global.gpu.acquire" in code
        assert "atom.global.gpu.release" in code

    def test_never_chosen_by_itself_on_a_cpu(self, monkeypatch):
        monkeypatch.delenv("DSLSTM_BACKEND", raising=False)
        for dtype in (torch.float32, torch.bfloat16):
            choice = choose_backend(like=torch.zeros(5, 3, dtype=dtype))
            assert choice.name in ("numba", "fused")

    def test_asked_for_on_a_cpu(self, monkeypatch):
        monkeypatch.setenv("DSLSTM_BACKEND", "triton")
        net = DSLSTM(4, 5, 6)
        match = (
            "'triton' .DSLSTM_BACKEND=triton. cannot run: .*CUDA, not on cpu"
        )
        with pytest.raises(ValueError, match=match):
            net(torch.zeros(1, 2, 4), torch.zeros(1, 2, 5))
        args = arguments((1, 2, 4, 5, 6))
        with pytest.raises(ValueError, match="CUDA, not on cpu.*TRITON_INTER"):
            ds_lstm_triton(*args)

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"hidden": 257}, "up to 256 hidden units, not 257"),
            ({"dtype": torch.float64}, "float32 and bfloat16, not float64"),
            ({"gate_norm": lambda gates: gates}, "no gate norm; use"),
        ],
    )
    def test_refuses_what_it_cannot(self, changed, match):
        shape = (1, 2, 1, 1, changed.get("hidden", 3))
        args = arguments(shape, changed.get("dtype", torch.float32))
        with pytest.raises(ValueError, match=match):
            ds_lstm_triton(*args, gate_norm=changed.get("gate_norm"))

    def test_what_a_launcher_is_built_with(self, monkeypatch, tmp_path):
        """If it is missing, another backend runs and training goes on."""
        look = kernel_triton._find_machine_problem.__wrapped__
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setenv("CC", "cc")
        assert kernel_triton._python_header().name == "Python.h"
        header = tmp_path / "Python.h"
        monkeypatch.setattr(kernel_triton, "_python_header", lambda: header)
        assert "finds no" in look("cuda", 0, False)
        header.touch()
        assert "Python.h" not in str(look("cuda", 0, False))
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no C compiler" in look("cuda", 0, False)

    def test_a_layer_does_not_import_triton(self):
        """Nor torch's compiler, which imports it: that takes a second."""
        code = (
            "import sys, torch, speechbrain\n"
            "heavy = {'triton', 'torch._dynamo'} - {*sys.modules}\n"
            "import speechbrain_dslstm\n"
            "speechbrain_dslstm.DSLSTM(2, 3, 4)\n"
            "assert heavy and not heavy & {*sys.modules}, heavy\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
