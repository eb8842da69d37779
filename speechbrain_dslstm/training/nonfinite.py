"""What keeps a training run whole: bad numbers, signals, lost processes.

``StepGuard`` finds the steps whose loss or gradients are NaN or Inf,
``check_finite`` keeps such numbers out of checkpoints, ``StopSignals`` turns
the signals of a scheduler into a request to save and end, and ``init_group``
starts the group of ranks with a timeout. All decisions are taken by all ranks
together: a rank that went its own way would leave the others waiting.
"""

import math

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import is_distributed_initialized
from speechbrain.utils.logger import get_logger
from torch.nn.utils import get_total_norm

from speechbrain_dslstm.utils.distributed import any_rank

__all__ = ["check_finite", "StepGuard"]

logger = get_logger(__name__)
MODES = ("skip", "stop")


def check_finite(recoverables, device):
    """Refuse to save weights, statistics or moments that are NaN or Inf.

    Arguments
    ---------
    recoverables : dict of str to object
        Those of the checkpointer; what has a ``state_dict`` is looked at.
    device : torch.device or str
        Where the group's backend reduces.

    Raises
    ------
    FloatingPointError
        On every rank, where one finds any.

    Example
    -------
    >>> model = torch.nn.Linear(1, 1)
    >>> check_finite({"model": model}, "cpu")
    >>> _ = torch.nn.init.constant_(model.bias, float("inf"))
    >>> check_finite({"model": model}, "cpu")
    Traceback (most recent call last):
        ...
    FloatingPointError: NaN or Inf in model.bias: no checkpoint is written, ...
    """
    found = []
    for name, one in recoverables.items():
        if hasattr(one, "state_dict"):
            found += _nonfinite(name, one.state_dict())
    if any_rank([bool(found)], device)[0]:
        more = f" and {len(found) - 5} more" if found[5:] else ""
        where = ", ".join(found[:5]) or "what another rank holds"
        raise FloatingPointError(
            f"NaN or Inf in {where}{more}: no checkpoint is written, the "
            "earlier ones stay. A smaller learning rate or max_grad_norm may "
            "help"
        )


def _nonfinite(name, state):
    """Names of the tensors in a state that are not finite."""
    if isinstance(state, torch.Tensor):
        return [] if bool(torch.isfinite(state).all()) else [name]
    items = []
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    return [
        found
        for key, value in items
        for found in _nonfinite(f"{name}.{key}", value)
    ]


class StepGuard:
    """Finds training steps that are NaN or Inf, and undoes what they left.

    A step is all micro-batches whose gradients are accumulated. Of a bad one
    nothing stays, neither in the weights nor in running statistics.

    Arguments
    ---------
    model : torch.nn.Module
        In training; its buffers are put back.
    mode : str
        "skip", or "stop" at the first.
    patience : int
        Steps in a row that are skipped before the run stops all the same.

    Example
    -------
    >>> model = torch.nn.BatchNorm1d(1)
    >>> guard = StepGuard(model, "skip", patience=3)
    >>> guard.start(["clip1", "clip2"])
    >>> loss = model(torch.tensor([[1.0], [float("nan")]])).sum()
    >>> guard.check_loss(loss)
    >>> loss.backward()
    >>> bad, _ = any_rank([guard.is_bad([model.weight.grad]), False], "cpu")
    >>> guard.end(bad, "step 1")
    >>> model.running_mean
    tensor([0.])
    """

    def __init__(self, model, mode, patience):
        if mode not in MODES:
            raise ValueError(
                f"on_nonfinite must be one of {MODES}, got {mode!r}"
            )
        self.model = model
        self.mode = mode
        self.patience = patience
        self.in_a_row = 0
        self._clear()

    def _clear(self):
        self.buffers = None
        self.ids = []
        self.bad_ids = []
        self.values = []

    def start(self, ids):
        """Note a micro-batch, before the model sees it.

        Arguments
        ---------
        ids : list of str
            Its utterances.
        """
        if self.buffers is None:
            self.buffers = [one.clone() for one in self.model.buffers()]
        self.ids.append(list(ids))

    def check_loss(self, loss):
        """Look at the loss of the micro-batch that was started last.

        Arguments
        ---------
        loss : torch.Tensor, []
            The loss; nothing is raised yet, so that all ranks go through the
            same reductions.
        """
        if not torch.isfinite(loss):
            self.bad_ids += self.ids[-1]
            self.values.append(f"{loss.item():g}")

    def is_bad(self, gradients, scaler=None):
        """Whether the step must not be taken, as far as this rank sees.

        Arguments
        ---------
        gradients : list of torch.Tensor
            Of all parameters that have one.
        scaler : torch.amp.GradScaler, optional
            Gradients that overflow are its business, as long as its scale has
            not sunk below 1.

        Returns
        -------
        bool
            True where the loss or a gradient is NaN or Inf.
        """
        if self.values:
            return True
        # Not the Euclidean norm, which overflows for large finite values
        if not gradients or torch.isfinite(get_total_norm(gradients, math.inf)):
            return False
        scaled = scaler is not None and scaler.is_enabled()
        return not (scaled and scaler.get_scale() >= 1)

    def end(self, bad, step):
        """End the step; after a bad one put the buffers back and report it.

        Arguments
        ---------
        bad : bool
            As all ranks have agreed.
        step : str
            Which step it is, for the message.

        Raises
        ------
        FloatingPointError
            A bad step, in mode "stop" or after too many.
        """
        if not bad:
            self.in_a_row = 0
            self._clear()
            return
        self.in_a_row += 1
        with torch.no_grad():
            for one, before in zip(
                self.model.buffers(), self.buffers, strict=True
            ):
                one.copy_(before)
        message = f"{step}: {self._reason()}"
        self._clear()
        if self.mode == "stop":
            raise FloatingPointError(f"{message}. Stopped (on_nonfinite: stop)")
        if self.in_a_row > self.patience:
            raise FloatingPointError(
                f"{message}. Stopped after {self.in_a_row} such steps in a row "
                f"(--nonfinite_patience={self.patience})"
            )
        logger.warning(f"{message}. The step is skipped")

    def _reason(self):
        """What was bad, with the utterances of every rank it may come from."""
        own = (self.values, self.bad_ids, sum(self.ids, []))
        ranks = [own]
        if is_distributed_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, own)
        values = [value for found, _, _ in ranks for value in found]
        if values:
            what = f"the loss is {', '.join(sorted(set(values)))}"
            ids = [bad for _, bad, _ in ranks]
        else:
            what = "gradients are NaN or Inf"
            ids = [seen for _, _, seen in ranks]
        if len(ranks) == 1:
            return f"{what}; utterances {', '.join(ids[0])}"
        parts = [
            f"rank {rank}: {', '.join(names)}"
            for rank, names in enumerate(ids)
            if names
        ]
        return f"{what}; utterances of {'; '.join(parts)}"
