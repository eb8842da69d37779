"""Options and steps of ReliableBrain; runs of it are in tests/robustness."""

import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_dslstm.training import (
    AtomicCheckpointer,
    EarlyStoppingEpochCounter,
    ReliableBrain,
)


def brain(checkpointer=None, **options):
    """A Brain with the smallest set of hyperparameters."""
    model = torch.nn.Linear(1, 1)
    hparams = {"model": model, "average_decay": None, "on_nonfinite": "skip"}
    return ReliableBrain(
        modules={"model": model},
        hparams=hparams,
        run_opts={"device": "cpu", **options},
        checkpointer=checkpointer,
    )


@pytest.mark.parametrize("norm", [-5.0, -1e-9, 0.0, float("nan")])
def test_max_grad_norm_that_would_reverse_or_stop_the_training(norm):
    with pytest.raises(ValueError, match="max_grad_norm must be positive"):
        brain(max_grad_norm=norm)


@pytest.mark.parametrize(
    ("norm", "expected"), [(1.0, [0.6, 0.8]), (float("inf"), [3.0, 4.0])]
)
def test_gradients_are_clipped_to_max_grad_norm(norm, expected):
    weight = torch.nn.Parameter(torch.zeros(2))
    one = brain(max_grad_norm=norm)
    one.optimizers_dict = {"only": torch.optim.SGD([weight], lr=1.0)}
    weight.grad = torch.tensor([3.0, 4.0])
    # The step itself, without the guard's decision
    super(ReliableBrain, one).optimizers_step()
    torch.testing.assert_close(-weight.detach(), torch.tensor(expected))


def test_no_checkpoint_to_test(tmp_path):
    model = torch.nn.Linear(1, 1)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    with pytest.raises(FileNotFoundError, match="no checkpoint to test in"):
        brain(checkpointer, test_only=True)
    checkpointer.save_checkpoint()
    assert brain(checkpointer, test_only=True).test_only
    # A debug run has a temporary folder in place of the one with checkpoints
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    with pytest.raises(FileNotFoundError, match="--debug sees no earlier"):
        brain(checkpointer, test_only=True, debug=True)


class Accumulating(ReliableBrain):
    """Learns the mean of its numbers, and counts the steps."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch["x"].data)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch["y"].data).pow(2).mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        pass


def accumulate(numbers, factor, batch_size=1, **options):
    """Train for two epochs by gradient descent; steps, rates and weight."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    rates = []

    def schedule(optimizer, total_steps):
        rates.append(total_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    hparams = {"model": model, "average_decay": None, "on_nonfinite": "skip"}
    hparams |= {"number_of_epochs": 2, "encoder_opt_class": None}
    hparams |= {"lr_schedule": schedule, "lr_interval": "batch"}
    hparams["epoch_counter"] = EarlyStoppingEpochCounter(2)
    one = Accumulating(
        modules={"model": model},
        opt_class=lambda p: torch.optim.SGD(p, lr=0.1),
        hparams=hparams,
        run_opts={
            "device": "cpu",
            "grad_accumulation_factor": factor,
            "max_grad_norm": float("inf"),
            "noprogressbar": True,
            **options,
        },
    )
    items = {
        str(k): {"x": torch.ones(1), "y": torch.tensor([float(n)])}
        for k, n in enumerate(numbers)
    }
    dataset = DynamicItemDataset(items, [], ["id", "x", "y"])
    loader = one.make_train_loader(dataset, batch_size=batch_size)
    one.fit(hparams["epoch_counter"], loader)
    assert rates == [one.total_steps]
    return one.optimizer_step, one.total_steps, model.weight.item()


@pytest.mark.parametrize(
    ("factor", "steps"), [(1, 10), (2, 6), (3, 4), (5, 2), (6, 2), (100, 2)]
)
def test_batches_that_an_epoch_leaves_over_make_a_step(factor, steps):
    numbers = [1.0, 2.0, 3.0, 4.0, 5.0]
    done, planned, _ = accumulate(numbers, factor)
    assert done == planned == steps


def test_a_shorter_group_is_a_mean_of_its_own():
    """As many batches as there are in the epoch, or more: the same training."""
    numbers = [1.0, 2.0, 6.0]
    _, _, whole = accumulate(numbers, 1, batch_size=3)
    for factor in (3, 4, 50):
        assert accumulate(numbers, factor)[2] == pytest.approx(whole)


def test_a_debug_run_steps_on_its_last_batch():
    options = {"debug": True, "debug_batches": 2, "debug_epochs": 1}
    done, _, weight = accumulate([1.0, 2.0, 3.0], 10, **options)
    assert done == 1 and weight > 0
