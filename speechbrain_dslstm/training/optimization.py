"""Optimisers, schedules, early stopping and averaging of the weights."""

import inspect
import math
from collections.abc import Callable, Collection

import torch
from speechbrain.utils.checkpoints import register_checkpoint_hooks
from speechbrain.utils.epoch_loop import EpochCounterWithStopper

__all__ = [
    "EarlyStoppingEpochCounter",
    "WeightAverage",
    "warmup_cosine",
]


@register_checkpoint_hooks
class EarlyStoppingEpochCounter(EpochCounterWithStopper):
    """Epoch counter that stops when a score no longer grows.

    SpeechBrain's own stopper has no checkpoint hooks, so it loses its count
    when a run resumes; and in mode "max" it counts a plateau as progress.

    Arguments
    ---------
    limit
        Largest number of epochs.
    patience
        Epochs without a better score before the stop; None never stops.
    warmup
        Epochs at the start whose scores do not count.

    Raises
    ------
    ValueError
        The patience is below 1.

    Example
    -------
    >>> counter = EarlyStoppingEpochCounter(10, patience=2)
    >>> for epoch in counter:
    ...     counter.update_score(0.5)
    >>> epoch
    3
    """

    def __init__(
        self, limit: int, patience: int | None = None, warmup: int = 0
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        # In mode "min", of the error 1 - score, a plateau is no progress
        super().__init__(limit, patience or limit + 1, warmup, "min")

    # The decorator registers only methods of the class itself
    _save = EpochCounterWithStopper._save
    _recover = EpochCounterWithStopper._recover

    def update_score(self, score: float) -> None:
        """Add the epoch's validation score in [0, 1]; larger is better."""
        self.update_metric(1.0 - float(score))


class WeightAverage(torch.nn.Module):
    """Exponential moving average of a model's weights, for evaluation.

    After a short and noisy training, an average over many steps is a better
    model than the last step, and its validation score varies less.

    Arguments
    ---------
    model
        The model in training; it is copied, with its buffers.
    decay
        Weight of the old average in each step, in [0, 1).

    Raises
    ------
    ValueError
        The decay is outside [0, 1).

    Example
    -------
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(model, decay=0.5)
    >>> average.update(model)
    >>> before = average.model.weight.clone()
    >>> torch.nn.init.constant_(model.weight, before.item() + 1) is not None
    True
    >>> average.update(model)
    >>> (average.model.weight - before).item()
    0.5
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.98) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.averaged = torch.optim.swa_utils.AveragedModel(
            model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay),
            use_buffers=True,
        )

    @property
    def model(self) -> torch.nn.Module:
        """The model with the averaged weights."""
        return self.averaged.module

    def update(self, model: torch.nn.Module) -> None:
        """Add the weights of the model in training after one more step."""
        self.averaged.update_parameters(model)
        # An average of integers is truncated: a counter would never grow
        for averaged, newest in zip(
            self.model.buffers(), model.buffers(), strict=True
        ):
            if not averaged.is_floating_point():
                averaged.copy_(newest)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup: float = 0.1
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let the learning rate rise linearly and fall along half a cosine.

    The schedule scales the rate of each parameter group, so that optimisers
    with different rates can share it.

    Arguments
    ---------
    optimizer
        Its learning rates are the peaks of the schedule.
    total_steps
        Steps of the whole run.
    warmup
        Share of the steps in which the rate rises, in [0, 1).

    Returns
    -------
    LambdaLR
        Call its ``step()`` after each batch.

    Raises
    ------
    ValueError
        The share is outside [0, 1).

    Example
    -------
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    >>> schedule = warmup_cosine(optimizer, total_steps=6, warmup=0.4)
    >>> rates = []
    >>> for _ in range(6):
    ...     rates.append(round(schedule.get_last_lr()[0], 2))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup must be in [0, 1), got {warmup}")
    rising = round(warmup * total_steps)

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, total_steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def split_parameters(
    model: torch.nn.Module, kind: type | tuple[type, ...]
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Split trainable parameters: in modules of class ``kind``, and others."""
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, kind)
        for parameter in module.parameters()
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    return (
        [p for p in trained if id(p) in inside],
        [p for p in trained if id(p) not in inside],
    )


def make_optimizer(
    opt_class: Callable,
    parameters: list[torch.nn.Parameter],
    slower: Collection[torch.nn.Parameter] = (),
    factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Make an optimiser whose rate for the parameters in ``slower`` is scaled."""
    ids = {id(parameter) for parameter in slower}
    groups = [
        {"params": [p for p in parameters if (id(p) in ids) is inside]}
        for inside in (False, True)
    ]
    for group, scale in zip(groups, (1.0, factor), strict=True):
        group["lr_scale"] = scale
    optimizer = opt_class([group for group in groups if group["params"]])
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    return optimizer


def make_schedule(
    schedule: Callable, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Start a learning-rate schedule, which keeps the ratio of the groups' rates.

    ``schedule`` receives ``total_steps`` if it has that argument, and keeps it as
    ``planned_steps``. Rates among
    its own arguments ("max_lr" or "base_lr" of torch's cyclic schedules) are
    scaled for each group of ``make_optimizer``.
    """
    known = inspect.signature(schedule).parameters
    options = {}
    if "total_steps" in known:
        options["total_steps"] = total_steps
    scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    for name in {"max_lr", "base_lr"} & known.keys():
        rate = known[name].default
        if isinstance(rate, int | float) and set(scales) != {1.0}:
            options[name] = [rate * scale for scale in scales]
    made = schedule(optimizer, **options)
    # An attribute of a scheduler is saved with its state
    made.planned_steps = options.get("total_steps")
    return made
