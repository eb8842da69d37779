"""NaN and Inf in training are found, reported, undone and never saved."""

import pytest
import step_faults
import torch
from nightly import at_night

from speechbrain_dslstm.training import StepGuard
from speechbrain_dslstm.training.nonfinite import check_finite

train = step_faults.train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def healthy(corpus, tmp_path_factory):
    """A run without a fault."""
    result = train(corpus, tmp_path_factory.mktemp("healthy"))
    assert result.code == 0, result.console
    return result


@pytest.fixture(scope="module")
def without_third(corpus, tmp_path_factory):
    """A run that never sees its third batch."""
    folder = tmp_path_factory.mktemp("without_third")
    result = train(corpus, folder, faults=[{"kind": "omit", "step": 3}])
    assert result.code == 0, result.console
    return result


def test_healthy_runs_are_those_of_speechbrain(corpus, healthy, tmp_path):
    """The guard changes no bit of weights, moments and averages."""
    bare = train(corpus, tmp_path, faults=[{"kind": "unguarded"}])
    assert bare.code == 0, bare.console
    assert len(bare.hashes()) >= 4 and bare.hashes() == healthy.hashes()
    assert bare.epochs == healthy.epochs


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("features", "nan", "the loss is nan"),
        ("gradient", "inf", "gradients are NaN or Inf"),
        ("loss", "nan", "the loss is nan"),
        at_night("loss", "inf", "the loss is inf"),
        at_night("loss", "-inf", "the loss is -inf"),
    ],
)
def test_a_skipped_step_leaves_nothing(
    corpus, healthy, without_third, tmp_path, kind, value, says
):
    """The result equals, bit for bit, that of a run without the batch."""
    fault = {"kind": kind, "step": 3, "value": value}
    result = train(corpus, tmp_path, faults=[fault])
    assert result.code == 0, result.console
    assert result.hashes() == without_third.hashes() != healthy.hashes()
    (line,) = [x for x in result.log.splitlines() if "is skipped" in x]
    assert f"epoch 1, batch 3: {says}; utterances spk" in line
    assert line.count("_s1") == 4


def test_one_bad_part_of_an_accumulated_step(corpus, tmp_path):
    """The second of three accumulated batches is bad: the whole step is skipped."""
    runs = [
        (tmp_path / "bad", {"kind": "features", "step": 2}),
        (tmp_path / "omitted", {"kind": "omit", "step": 1, "last": 3}),
    ]
    processes = [
        step_faults.start(
            corpus, output, "--grad_accumulation_factor=3", faults=[fault]
        )
        for output, fault in runs
    ]
    bad, omitted = (
        step_faults.finish(process, output)
        for process, (output, _) in zip(processes, runs, strict=True)
    )
    assert bad.code == omitted.code == 0, bad.console + omitted.console
    assert bad.hashes() == omitted.hashes()
    (line,) = [x for x in bad.log.splitlines() if "is skipped" in x]
    # Only the utterances of the bad batch are named
    assert "epoch 1, batch 3" in line and 1 <= line.count("_s1") <= 4


@pytest.mark.parametrize(
    ("options", "faults", "says"),
    [
        (
            ["--on_nonfinite=stop"],
            [{"kind": "loss", "step": 10, "value": "nan"}],
            "epoch 2, batch 2: the loss is nan; utterances spk",
        ),
        (
            ["--nonfinite_patience=2"],
            [{"kind": "gradient", "step": 10, "last": 99}],
            "Stopped after 3 such steps in a row (--nonfinite_patience=2)",
        ),
        (
            [],
            [{"kind": "weight", "step": 16, "value": "inf"}],
            "NaN or Inf in model.branches.",
        ),
        (
            ["--average_decay=null"],
            [{"kind": "weight", "step": 16, "value": "nan"}],
            "log_probs are not finite for ",
        ),
    ],
    ids=["stop", "patience", "weights", "validation"],
)
def test_a_stop_keeps_the_checkpoint(
    corpus, healthy, tmp_path, options, faults, says
):
    """Epoch 2 fails: epoch 1's checkpoint stays, and without the fault it resumes."""
    options = ["--selection_start=0.0", "--ckpt_interval_steps=1", *options]
    result = train(corpus, tmp_path, *options, faults=faults)
    assert result.code == 1, result.console
    assert says in result.console
    assert [row["epoch"] for row in result.epochs][:1] == [1]
    metas = [
        (result.output / "save" / name / "CKPT.yaml").read_text()
        for name in result.checkpoints
    ]
    # Checkpoints of the best epoch and of steps after it, all finite
    assert sum("score: " in meta for meta in metas) == 1
    assert any("epoch: 1\n" in meta for meta in metas)
    for path in (result.output / "save").glob("CKPT*/*.ckpt"):
        if path.name in ("model.ckpt", "average.ckpt", "optimizer.ckpt"):
            state = torch.load(path, map_location="cpu")
            check_finite({"state": _Holder(state)}, "cpu")
    # What was skipped before the stop stays skipped
    if not any("patience" in x or "decay" in x for x in options):
        again = train(corpus, tmp_path, *options)
        assert again.code == 0, again.console
        assert again.hashes() == healthy.hashes()


class _Holder:
    """An object with a given state."""

    def __init__(self, state):
        self.state_dict = lambda: state


def test_two_ranks_decide_alike(corpus, tmp_path):
    """A fault on one rank makes both skip the step, and neither hangs."""
    faults = [
        {"kind": "loss", "step": 1, "rank": 0, "value": "inf"},
        {"kind": "features", "step": 2, "rank": 1},
        {"kind": "gradient", "step": 4, "rank": 1},
    ]
    result = train(corpus, tmp_path, faults=faults, ranks=2)
    assert result.code == 0, result.console
    assert result.hashes(0)["model"] == result.hashes(1)["model"]
    assert result.hashes(0) == result.hashes(1)
    lines = [x for x in result.log.splitlines() if "is skipped" in x]
    assert len(lines) == 3
    assert "the loss is inf; utterances of rank 0: spk" in lines[0]
    assert "rank 1" not in lines[0] and lines[0].count("_s1") == 4
    # Batch norm over the ranks carries the NaN to the other rank's loss
    assert "the loss is nan; utterances of rank 0: spk" in lines[1]
    assert "; rank 1: spk" in lines[1] and lines[1].count("_s1") == 7
    assert "gradients are NaN or Inf; utterances of rank 0" in lines[2]


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown on_nonfinite"):
        StepGuard(torch.nn.Linear(1, 1), "ignore", 3)


class _Scaler:
    """Stand-in for a gradient scaler, because a CPU has none."""

    def __init__(self, scale):
        self.get_scale = lambda: scale

    def is_enabled(self):
        return True


@pytest.mark.parametrize(("scale", "bad"), [(65536.0, False), (0.5, True)])
def test_overflow_is_the_scalers_while_it_can_sink(scale, bad):
    guard = StepGuard(torch.nn.Linear(1, 1), "skip", 3)
    overflowed = [torch.tensor([1.0, float("inf")])]
    guard.start(["clip"])
    assert guard.is_bad(overflowed, _Scaler(scale)) is bad
    assert guard.is_bad(overflowed) is True
    # The scaler is not responsible for the loss
    guard.check_loss(torch.tensor(float("nan")))
    assert guard.is_bad([], _Scaler(scale)) is True


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_real_scaler_recovers_from_overflow():
    """The scaler halves its scale, and the guard counts no bad step."""
    model = torch.nn.Linear(4, 1, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    guard = StepGuard(model, "stop", 0)
    before = model.weight.detach().clone()
    for step in range(40):
        guard.start(["clip"])
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(torch.ones(8, 4, device="cuda")).square().mean()
        guard.check_loss(loss)
        scaler.scale(loss).backward()
        gradients = [one.grad for one in model.parameters()]
        guard.end(guard.is_bad(gradients, scaler), f"step {step}")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert 1 <= scaler.get_scale() < 2.0**40
    assert not torch.equal(before, model.weight)


def test_large_finite_gradients_are_not_bad():
    """Gradients whose squares overflow are finite, and clipping makes them small."""
    guard = StepGuard(torch.nn.Linear(1, 1), "skip", 3)
    guard.start(["clip"])
    assert not guard.is_bad([torch.full((4,), 1e30)])
    assert guard.is_bad([torch.full((4,), 1e30), torch.tensor(float("nan"))])


def test_states_are_checked_before_a_save():
    """The error names a weight, a statistic or a moment of an optimiser."""
    model = torch.nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    recoverables = {"model": model, "optimizer": optimizer, "counter": 3}
    check_finite(recoverables, "cpu")
    moment = optimizer.state[model.weight]["exp_avg"]
    for tensor, name in [
        (model.weight, "model.weight"),
        (model.running_var, "model.running_var"),
        (moment, "optimizer.state.0.exp_avg"),
    ]:
        with torch.no_grad():
            before = tensor.clone()
            tensor[1] = float("inf")
            with pytest.raises(FloatingPointError, match=f"Inf in {name}:"):
                check_finite(recoverables, "cpu")
            tensor.copy_(before)
    check_finite(recoverables, "cpu")
