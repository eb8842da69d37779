"""Skip training steps with NaN or Inf, and keep both out of checkpoints.

All ranks decide together: a rank that decided alone would leave the others
waiting for its gradients.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import is_distributed_initialized
from speechbrain.utils.logger import get_logger
from torch.nn.utils import get_total_norm

from speechbrain_dslstm.utils.distributed import any_rank

__all__ = ["StepGuard"]

logger = get_logger(__name__)
MODES = ("skip", "stop")


def check_finite(
    recoverables: Mapping[str, Any], device: torch.device | str
) -> None:
    """Raise FloatingPointError on all ranks where a state holds NaN or Inf.

    ``recoverables`` are a checkpointer's objects; those that have a
    ``state_dict`` are checked. The ranks' flags are reduced on ``device``.
    """
    found = []
    for name, one in recoverables.items():
        if hasattr(one, "state_dict"):
            found += _nonfinite(name, one.state_dict())
    if any_rank([bool(found)], device)[0]:
        more = f" and {len(found) - 5} more" if found[5:] else ""
        where = ", ".join(found[:5]) or "the state of another rank"
        raise FloatingPointError(
            f"NaN or Inf in {where}{more}: no checkpoint is saved, and the "
            "earlier ones are kept. A smaller learning rate or max_grad_norm "
            "may help"
        )


def _nonfinite(name: str, state: Any) -> list[str]:
    """Name the tensors in a state that hold NaN or Inf."""
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
    """Finds training steps with NaN or Inf, and undoes their effects.

    A step consists of all micro-batches whose gradients are accumulated. A bad
    step changes neither weights nor running statistics.

    Arguments
    ---------
    model
        The model in training; a bad step's changes to its buffers are undone.
    mode
        "skip" such steps, or "stop" with an error at the first.
    patience
        Largest number of consecutive steps that are skipped.

    Raises
    ------
    ValueError
        The mode is unknown.

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

    def __init__(
        self, model: torch.nn.Module, mode: str, patience: int
    ) -> None:
        if mode not in MODES:
            raise ValueError(
                f"unknown on_nonfinite {mode!r}; expected one of "
                f"{', '.join(MODES)}"
            )
        self.model = model
        self.mode = mode
        self.patience = patience
        self.in_a_row = 0
        self._clear()

    def _clear(self) -> None:
        self.buffers = None
        self.ids = []
        self.bad_ids = []
        self.values = []

    def start(self, ids: Sequence[str]) -> None:
        """Register a micro-batch by its utterances, before the model sees it."""
        if self.buffers is None:
            self.buffers = [one.clone() for one in self.model.buffers()]
        self.ids.append(list(ids))

    def check_loss(self, loss: torch.Tensor) -> None:
        """Check the loss [] of the newest micro-batch.

        Nothing is raised yet, so that all ranks take part in all reductions.
        """
        if not torch.isfinite(loss):
            self.bad_ids += self.ids[-1]
            self.values.append(f"{loss.item():g}")

    def is_bad(
        self,
        gradients: Sequence[torch.Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> bool:
        """Tell whether this rank's loss or gradients are NaN or Inf.

        Gradients that overflow are left to the ``scaler`` as long as its scale
        is at least 1.
        """
        if self.values:
            return True
        # The Euclidean norm overflows for large finite values
        if not gradients or torch.isfinite(get_total_norm(gradients, math.inf)):
            return False
        scaled = scaler is not None and scaler.is_enabled()
        return not (scaled and scaler.get_scale() >= 1)

    def end(self, bad: bool, step: str) -> None:
        """End a step, which is ``bad`` on all ranks or on none.

        A bad step is undone and logged under the name ``step``. In mode "stop",
        or after too many, it raises a FloatingPointError.
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

    def _reason(self) -> str:
        """Describe a bad step with the utterances that may have caused it."""
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
