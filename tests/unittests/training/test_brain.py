"""What ReliableBrain refuses; runs of it are in tests/robustness."""

import pytest
import torch

from speechbrain_dslstm.training import AtomicCheckpointer, ReliableBrain


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
