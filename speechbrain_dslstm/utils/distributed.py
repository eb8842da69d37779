"""Sums, means and maxima over the ranks of a distributed run.

In a single process each function returns its own value at once.
"""

import atexit
import datetime
import gc
from typing import Any

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import get_local_rank, get_rank
from torch.distributed.nn.functional import all_reduce

__all__ = [
    "any_rank",
    "ddp_loss_scale",
    "init_group",
    "max_over_ranks",
    "mean_over_ranks",
    "sum_over_ranks",
]


def _alone() -> bool:
    """Whether this process has no other ranks to reduce with."""
    joined = dist.is_available() and dist.is_initialized()
    return not joined or dist.get_world_size() == 1


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sum a tensor, whose shape every rank shares, over the ranks; differentiable."""
    return x if _alone() else all_reduce(x)


def max_over_ranks(value: int, device: torch.device | str) -> int:
    """Largest of the ranks' integers, reduced on ``device``."""
    if _alone():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def mean_over_ranks(value: float, device: torch.device | str) -> float:
    """Mean of the ranks' numbers, reduced on ``device``."""
    if not _alone():
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        value = total.item() / dist.get_world_size()
    return float(value)


def any_rank(flags: list[bool], device: torch.device | str) -> list[bool]:
    """Return for each flag whether it is set on at least one rank.

    >>> any_rank([True, False], "cpu")
    [True, False]
    """
    if not _alone():
        reduced = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX)
        flags = reduced.tolist()
    return [bool(flag) for flag in flags]


def ddp_loss_scale(
    amount: float | torch.Tensor, device: torch.device | str
) -> float | torch.Tensor:
    """Loss factor that makes DDP's plain average correct for unequal batches.

    ``amount`` is the number of clips, or the sum of their weights, over which
    this rank's loss is a mean. DDP averages the gradients of all ranks as if
    these amounts were equal. The factor is ``amount`` over the mean of the
    ranks' amounts, and 1.0 in a single process.
    """
    if _alone():
        return 1.0
    amount = torch.as_tensor(amount, dtype=torch.float32, device=device)
    total = amount.detach().clone()
    dist.all_reduce(total)
    return amount * dist.get_world_size() / total


def init_group(run_opts: dict[str, Any], timeout: float) -> None:
    """Join the process group of torchrun's ranks; do nothing in a single process.

    ``run_opts`` comes from ``speechbrain.parse_arguments``. A rank that waits
    for another longer than ``timeout`` seconds ends with an error;
    SpeechBrain's own ``ddp_init_group`` waits for two hours.
    """
    if not timeout > 0:
        raise ValueError(f"ddp_timeout must be positive, got {timeout}")
    rank = get_rank()
    if rank is None or get_local_rank() is None:
        return
    if run_opts["distributed_backend"] == "nccl":
        torch.cuda.set_device(get_local_rank())
    dist.init_process_group(
        run_opts["distributed_backend"],
        rank=rank,
        timeout=datetime.timedelta(seconds=timeout),
    )
    atexit.register(_leave_group)


def _leave_group() -> None:
    """End gloo's threads, because one that outlives Python aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # The wrapped model, in a reference cycle, holds the group, too
        gc.collect()
