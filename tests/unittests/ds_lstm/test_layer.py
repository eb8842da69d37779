"""The DS-LSTM: every backend against the equations, and the layer's behaviour."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm import backends, ds_lstm_naive
from speechbrain_dslstm.ds_lstm.backends import (
    BACKENDS,
    WITH_GATE_NORM,
    choose_backend,
)
from speechbrain_dslstm.layers import StepBatchNorm
from speechbrain_dslstm.lengths import to_relative

# test_kernel_triton.py holds triton to the same, on a GPU or interpreted
HERE = [name for name in BACKENDS if name != "triton"]
FAST = [name for name in HERE if name != "naive"]
TOLERANCE = {
    torch.float64: {"atol": 1e-10, "rtol": 1e-10},
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
}
# batch, time, input_x, input_y, hidden
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 7, 5, 4, 6),
    (3, 63, 11, 13, 200),
    (2, 5, 3, 2, 1),
    (1, 63, 5, 4, 20),
    (6, 9, 11, 13, 21),
]


def arguments(shape, dtype, seed=0):
    """Random arguments of a backend, all of them wanting a gradient."""
    batch, time, size_x, size_y, hidden = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [
        (batch, time, size_x),
        (batch, time, size_y),
        (batch, hidden),
        (batch, hidden),
        (5 * hidden, size_x),
        (5 * hidden, size_y),
        (6 * hidden, hidden),
        (6 * hidden,),
    ]
    scale = hidden**-0.5
    return [
        (torch.randn(size, generator=generator, dtype=torch.float64) * scale)
        .to(dtype)
        .requires_grad_()
        for size in sizes
    ]


def results(backend, args, counts, gate_norm=None):
    """Outputs, states and the gradients of one backend."""
    args = [arg.detach().clone().requires_grad_() for arg in args]
    out, h, c = BACKENDS[backend](*args, counts, gate_norm)
    # Different weights for each value, so that no gradient cancels
    loss = sum(
        (
            value
            * torch.linspace(-1, 1, value.numel()).to(value).view_as(value)
        ).sum()
        for value in (out, h, c)
    )
    loss.backward()
    return [out, h, c] + [arg.grad for arg in args]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_backend_equals_equations(backend, ragged, shape, dtype):
    args = arguments(shape, dtype)
    batch, time = shape[:2]
    counts = None
    if ragged:
        counts = torch.linspace(1, time, batch).round().long()
    expected = results("naive", args, counts)
    for ours, theirs in zip(
        results(backend, args, counts), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


def trained_gate_norm(features, dtype):
    """A norm with scale, shift and statistics of its own."""
    norm = StepBatchNorm(features, steps=50).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.copy_(torch.rand(value.shape, generator=generator) * 0.2)
    norm.running_var.copy_(norm.running_mean + 0.1)
    norm.steps_seen.fill_(40)
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, 63, 11, 13, 200), (4, 5, 3, 2, 1)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", sorted({*FAST} & {*WITH_GATE_NORM}))
def test_gate_norm_equals_equations(backend, ragged, shape, training):
    """Float64: a norm of nearly equal gates enlarges what is rounded off."""
    args = arguments(shape, torch.float64)
    batch, time, *_, hidden = shape
    counts = None
    if ragged:
        counts = torch.linspace(1, time, batch).round().long()
    found = []
    for name in (backend, "naive"):
        norm = trained_gate_norm(4 * hidden, torch.float64).train(training)
        values = results(name, args, counts, norm)
        values += [norm.weight.grad, norm.bias.grad]
        found.append(values + [*norm.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", WITH_GATE_NORM)
def test_gate_norm_gradcheck(backend, training):
    args = arguments((3, 4, 2, 3, 2), torch.float64)
    norm = trained_gate_norm(8, torch.float64).train(training)
    counts = torch.tensor([4, 2, 3])
    args += [norm.weight, norm.bias]

    def run(*inputs):
        # Fresh running statistics, which the perturbed runs do not share
        one = trained_gate_norm(8, torch.float64).train(training)
        del one.weight, one.bias
        one.weight, one.bias = inputs[-2:]
        return BACKENDS[backend](*inputs[:-2], counts, one)

    assert torch.autograd.gradcheck(run, args)


@pytest.mark.parametrize("backend", HERE)
def test_gradcheck(backend):
    args = arguments((3, 4, 2, 3, 2), torch.float64)
    counts = torch.tensor([4, 2, 3])
    assert torch.autograd.gradcheck(
        lambda *inputs: BACKENDS[backend](*inputs, counts), args
    )


def test_equations_against_a_sum_of_products():
    """One unit, by hand: every symbol of the paper on its own line."""
    x, y, h, c = 0.3, -0.7, 0.2, 0.5
    wx, wy = [0.1, 0.2, 0.3, 0.4, 0.5], [-0.1, -0.2, -0.3, -0.4, -0.5]
    wh, b = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    sigmoid = torch.nn.Sigmoid()
    tensor = torch.tensor
    f, i_t, i_f, o = (
        sigmoid(tensor(wx[k] * x + wy[k] * y + wh[k] * h + b[k]))
        for k in range(4)
    )
    c_t = torch.tanh(tensor(wx[4] * x + wh[4] * h + b[4]))
    c_f = torch.tanh(tensor(wy[4] * y + wh[5] * h + b[5]))
    new_c = f * c + i_t * c_t + i_f * c_f
    out, h_n, c_n = ds_lstm_naive(
        *(tensor([[[v]]]) for v in (x, y)),
        *(tensor([[v]]) for v in (h, c)),
        *(tensor(v).unsqueeze(1) for v in (wx, wy, wh)),
        tensor(b),
    )
    torch.testing.assert_close(c_n[0, 0], new_c)
    torch.testing.assert_close(h_n[0, 0], o * torch.tanh(new_c))
    torch.testing.assert_close(out[0, 0, 0], h_n[0, 0])


def inputs(batch=3, time=9, seed=0):
    """Aligned x and y of a layer with sizes 4 and 5."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, 4, generator=generator)
    y = torch.randn(batch, time, 5, generator=generator)
    return x, y


def layer(**options):
    """A small layer in evaluation mode."""
    torch.manual_seed(0)
    return DSLSTM(4, 5, 6, num_layers=2, **options).eval()


OPTIONS = [
    {},
    {"bidirectional": True},
    {"gate_norm": "batch", "output_norm": "batch"},
    {"bidirectional": True, "gate_norm": "batch", "output_norm": "batch"},
]


@pytest.mark.parametrize("options", OPTIONS)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=20)
def test_padding_changes_nothing(options, counts):
    """An utterance alone equals the utterance in a padded batch of garbage."""
    net = layer(**options)
    x, y = inputs(len(counts), max(counts))
    for row, count in enumerate(counts):
        x[row, count:] = y[row, count:] = 1e3
    out, (h, c) = net(x, y, torch.tensor(counts))
    for row, count in enumerate(counts):
        alone, (h_1, c_1) = net(
            x[row : row + 1, :count], y[row : row + 1, :count]
        )
        torch.testing.assert_close(out[row : row + 1, :count], alone)
        torch.testing.assert_close(h[:, row : row + 1], h_1)
        torch.testing.assert_close(c[:, row : row + 1], c_1)
        assert out[row, count:].abs().sum() == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_training_statistics_do_not_see_padding(options):
    net = layer(**options).train().double()
    x, y = (v.double() for v in inputs())
    counts = torch.tensor([9, 4, 6])
    out, _ = net(x, y, counts)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    net = layer(**options).train().double()
    x, y = (torch.nn.functional.pad(v, (0, 0, 0, 5), value=7.0) for v in (x, y))
    for row, count in enumerate(counts):
        x[row, count:] = 7.0
    longer, _ = net(x, y, counts)
    torch.testing.assert_close(longer[:, :9], out)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=name)


def test_relative_lengths_equal_counts():
    net, (x, y) = layer(), inputs()
    counts = torch.tensor([9, 5, 2])
    by_counts, _ = net(x, y, counts)
    by_fraction, _ = net(x, y, to_relative(counts, 9))
    torch.testing.assert_close(by_fraction, by_counts, atol=0, rtol=0)


def test_state_carries_on():
    """Two halves with the state between them equal the whole."""
    net, (x, y) = layer(), inputs()
    whole, (h, c) = net(x, y)
    first, state = net(x[:, :4], y[:, :4])
    second, (h_2, c_2) = net(x[:, 4:], y[:, 4:], hx=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(h_2, h)
    torch.testing.assert_close(c_2, c)


def test_backward_direction_is_the_forward_one_on_reversed_input():
    net, (x, y) = DSLSTM(4, 5, 6, bidirectional=True), inputs()
    out, (h, _) = net(x, y)
    one = DSLSTM(4, 5, 6)
    one.load_state_dict(
        {
            name.removesuffix("_reverse"): value
            for name, value in net.state_dict().items()
            if name.endswith("_reverse")
        }
    )
    flipped, (h_1, _) = one(x.flip(1), y.flip(1))
    torch.testing.assert_close(out[..., 6:], flipped.flip(1))
    torch.testing.assert_close(h[1], h_1[0])


def test_second_layer_reads_the_first_and_the_same_y():
    net, (x, y) = layer(), inputs()
    out, _ = net(x, y)
    zeros = torch.zeros(3, 6)

    def run(k, x):
        names = ("weight_x", "weight_y", "weight_h", "bias")
        weights = [getattr(net, f"{name}_l{k}") for name in names]
        return ds_lstm_naive(x, y, zeros, zeros, *weights)[0]

    torch.testing.assert_close(out, run(1, run(0, x)))


def test_gate_norm_normalises_after_the_sigmoid():
    """With scale 0 and shift 0 all gates are shut: no output at all."""
    net, (x, y) = layer(gate_norm="batch"), inputs()
    for norm in net.gate_norms.values():
        assert norm.weight.unique().tolist() == pytest.approx([0.1])
        torch.nn.init.zeros_(norm.weight)
    assert net(x, y)[0].abs().max() == 0


def test_dropout_only_between_layers():
    net, (x, y) = layer(dropout=0.9).train(), inputs()
    assert not torch.equal(net(x, y)[0], net(x, y)[0])
    one = DSLSTM(4, 5, 6, num_layers=1, dropout=0.9).train()
    torch.testing.assert_close(one(x, y)[0], one(x, y)[0], atol=0, rtol=0)


def test_parameters_are_drawn_from_the_documented_range():
    torch.manual_seed(0)
    net, bound = DSLSTM(30, 40, hidden_size=64, bidirectional=True), 1 / 8
    for name, value in net.named_parameters():
        assert value.abs().max() <= bound, name
        # The extremes of a few hundred uniform values are near the bounds
        assert value.max() > 0.97 * bound and value.min() < -0.97 * bound, name


def test_parameter_names_and_shapes():
    shapes = {k: list(v.shape) for k, v in layer().named_parameters()}
    assert shapes == {
        "weight_x_l0": [30, 4],
        "weight_y_l0": [30, 5],
        "weight_h_l0": [36, 6],
        "bias_l0": [36],
        "weight_x_l1": [30, 6],
        "weight_y_l1": [30, 5],
        "weight_h_l1": [36, 6],
        "bias_l1": [36],
    }


def test_override_and_unknown_backend(monkeypatch):
    assert choose_backend("naive").function is ds_lstm_naive
    monkeypatch.setenv("DSLSTM_BACKEND", "naive")
    assert choose_backend("eager").name == "naive"
    assert "DSLSTM_BACKEND" in choose_backend("eager").reason
    monkeypatch.setenv("DSLSTM_BACKEND", "warp")
    with pytest.raises(
        ValueError, match="unknown DS-LSTM backend 'warp'.*eager"
    ):
        choose_backend()
    monkeypatch.delenv("DSLSTM_BACKEND")
    with pytest.raises(ValueError, match="backend='warp'"):
        DSLSTM(4, 5, 6, backend="warp")
    with pytest.raises(ValueError, match="'fused' .* has no gate norm"):
        DSLSTM(4, 5, 6, gate_norm="batch", backend="fused")


def test_without_numba_the_next_best(monkeypatch):
    monkeypatch.delenv("DSLSTM_BACKEND", raising=False)
    numba = choose_backend()
    assert numba[:2] == ("numba", "auto: the fastest here")
    monkeypatch.setitem(
        backends.PROBLEMS, "numba", lambda like, gate_norm: "no numba"
    )
    assert choose_backend()[:2] == ("fused", "auto: no numba")
    assert choose_backend(gate_norm=True)[:2] == ("eager", "auto: no numba")
    with pytest.raises(ValueError, match="'numba' .* cannot run: no numba"):
        choose_backend("numba")


def test_variable_brings_auto_back(monkeypatch):
    monkeypatch.setenv("DSLSTM_BACKEND", "auto")
    assert choose_backend("naive")[:2] == ("numba", "auto: the fastest here")
    monkeypatch.setenv("DSLSTM_BACKEND", "")
    assert choose_backend("naive").name == "naive"


def test_the_choice_is_logged_once(caplog, monkeypatch):
    monkeypatch.setenv("DSLSTM_BACKEND", "eager")
    backends.announce_backend.cache_clear()
    with caplog.at_level("INFO"):
        net, (x, y) = layer(), inputs()
        net(x, y)
        net(x, y)
    said = [one for one in caplog.messages if "backend" in one]
    assert said == ["DS-LSTM backend eager (DSLSTM_BACKEND=eager)"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"gate_norm": "layer"}, 'gate_norm must be None or "batch"'),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        DSLSTM(4, 5, 6, **options)


def test_bad_inputs():
    net, (x, y) = layer(), inputs()
    with pytest.raises(ValueError, match=r"x of shape \[batch, time, 4\]"):
        net(y, y)
    with pytest.raises(ValueError, match="same number of frames"):
        net(x, y[:, 1:])
    with pytest.raises(ValueError, match=r"initial state of shape \[2, 3, 6\]"):
        net(x, y, hx=(torch.zeros(1, 3, 6), torch.zeros(1, 3, 6)))
    with pytest.raises(ValueError, match="counts in 1..9"):
        net(x, y, torch.tensor([9, 10, 1]))
