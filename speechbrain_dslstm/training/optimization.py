"""What the recipe's training loop needs beside SpeechBrain's Brain."""

import math

import torch
from speechbrain.utils.checkpoints import register_checkpoint_hooks
from speechbrain.utils.epoch_loop import EpochCounterWithStopper

__all__ = [
    "EarlyStoppingEpochCounter",
    "WeightAverage",
    "split_parameters",
    "warmup_cosine",
]


@register_checkpoint_hooks
class EarlyStoppingEpochCounter(EpochCounterWithStopper):
    """Epoch counter that stops when a score no longer grows.

    SpeechBrain's own stopper is not registered with the checkpointer, so it
    forgets everything on resume, and for a growing score it takes a plateau
    for progress.

    Arguments
    ---------
    limit : int
        Most epochs.
    patience : int, optional
        Epochs without a better score before the stop; None never stops.
    warmup : int
        Epochs before the score is looked at.

    Example
    -------
    >>> counter = EarlyStoppingEpochCounter(10, patience=2)
    >>> for epoch in counter:
    ...     counter.update_score(0.5)
    >>> epoch
    3
    """

    def __init__(self, limit, patience=None, warmup=0):
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        # An error, 1 - score, so that a plateau counts as no progress
        super().__init__(limit, patience or limit + 1, warmup, "min")

    # The decorator registers only what stands in the class itself
    _save = EpochCounterWithStopper._save
    _recover = EpochCounterWithStopper._recover

    def update_score(self, score):
        """Take the validation score of the epoch that just ended.

        Arguments
        ---------
        score : float
            In [0, 1], larger is better.
        """
        self.update_metric(1.0 - float(score))


class WeightAverage(torch.nn.Module):
    """Exponential moving average of a model's weights, for evaluation.

    An average over many steps of a noisy, short training is a better model
    than its last step, and its validation score is less of a lottery.

    Arguments
    ---------
    model : torch.nn.Module
        The model in training; it is copied, with its buffers.
    decay : float
        Weight of the old average in each step.

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

    def __init__(self, model, decay=0.98):
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.averaged = torch.optim.swa_utils.AveragedModel(
            model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay),
            use_buffers=True,
        )

    @property
    def model(self):
        """The model that holds the average."""
        return self.averaged.module

    def update(self, model):
        """Add the weights of one more training step.

        Arguments
        ---------
        model : torch.nn.Module
            The model in training.
        """
        self.averaged.update_parameters(model)
        # An average of integers is cut off, so a counter would never grow
        for averaged, newest in zip(
            self.model.buffers(), model.buffers(), strict=True
        ):
            if not averaged.is_floating_point():
                averaged.copy_(newest)


def warmup_cosine(optimizer, total_steps, warmup=0.1):
    """Learning rate that rises in a line and falls along half a cosine.

    It scales the rate that each group of the optimiser has, so optimisers of
    different rates can share it.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        Has its largest rate already.
    total_steps : int
        Steps of the whole run.
    warmup : float
        Share of them in which the rate rises.

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR
        To be stepped after each batch.

    Raises
    ------
    ValueError
        A share outside [0, 1).

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

    def scale(step):
        """Factor of the largest rate, from 0 to 1."""
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, total_steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def split_parameters(model, kind):
    """Trainable parameters of modules of one kind, and all others.

    Arguments
    ---------
    model : torch.nn.Module
        The whole model.
    kind : type
        Class of the modules in question.

    Returns
    -------
    inside : list of torch.nn.Parameter
        Those of modules of that class.
    outside : list of torch.nn.Parameter
        The rest.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.PReLU())
    >>> inside, outside = split_parameters(model, torch.nn.PReLU)
    >>> len(inside), len(outside)
    (1, 2)
    """
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
