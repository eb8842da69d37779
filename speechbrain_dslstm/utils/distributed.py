"""Numbers of all ranks of a distributed run; in a single process, one's own."""

import datetime

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import get_local_rank, get_rank
from torch.distributed.nn.functional import all_reduce

__all__ = [
    "sum_over_ranks",
    "any_rank",
    "mean_over_ranks",
    "ddp_loss_scale",
    "init_group",
]


def _alone():
    if not (dist.is_available() and dist.is_initialized()):
        return True
    return dist.get_world_size() == 1


def sum_over_ranks(x):
    """Differentiable sum over the ranks; ``x`` itself in a single process.

    Arguments
    ---------
    x : torch.Tensor
        Of the same shape on every rank.

    Returns
    -------
    torch.Tensor
        The sum, on every rank.

    Example
    -------
    >>> sum_over_ranks(torch.ones(2))
    tensor([1., 1.])
    """
    return x if _alone() else all_reduce(x)


def any_rank(flags, device):
    """Which flags are set on any rank.

    Arguments
    ---------
    flags : list of bool
        This rank's, in the same order on every rank.
    device : torch.device or str
        Where the group's backend reduces.

    Returns
    -------
    list of bool
        The same on every rank.

    Example
    -------
    >>> any_rank([True, False], "cpu")
    [True, False]
    """
    if not _alone():
        reduced = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX)
        flags = reduced.tolist()
    return [bool(flag) for flag in flags]


def mean_over_ranks(value, device):
    """Mean of a number over the ranks, each of which has its own.

    Arguments
    ---------
    value : float
        This rank's.
    device : torch.device or str
        Where the group's backend reduces.

    Returns
    -------
    float
        The same on every rank; ``value`` in a single process.

    Example
    -------
    >>> mean_over_ranks(0.5, "cpu")
    0.5
    """
    if not _alone():
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        value = total.item() / dist.get_world_size()
    return float(value)


def ddp_loss_scale(amount, device):
    """How much more than the others this rank has in a step.

    DDP takes the mean of the ranks' gradients. With its loss times this, a
    rank counts for what it has, and the ranks make the step of one process.

    Arguments
    ---------
    amount : float or torch.Tensor, []
        What this rank's loss is a mean over: clips, or their weights.
    device : torch.device or str
        Where the group's backend reduces.

    Returns
    -------
    torch.Tensor or float
        ``amount`` over the mean of the ranks' amounts; 1.0 in a single
        process.

    Example
    -------
    >>> ddp_loss_scale(3, "cpu")
    1.0
    """
    if _alone():
        return 1.0
    amount = torch.as_tensor(amount, dtype=torch.float32, device=device)
    total = amount.detach().clone()
    dist.all_reduce(total)
    return amount * dist.get_world_size() / total


def init_group(run_opts, timeout):
    """Join the ranks that torchrun has started; nothing in a single process.

    SpeechBrain's ``ddp_init_group`` waits two hours for a rank that hangs.

    Arguments
    ---------
    run_opts : dict
        From ``speechbrain.parse_arguments``.
    timeout : float
        Seconds that a rank waits for another before it ends with an error.

    Raises
    ------
    ValueError
        A timeout that is not positive.

    Example
    -------
    >>> init_group({"distributed_backend": "gloo"}, timeout=0)
    Traceback (most recent call last):
        ...
    ValueError: ddp_timeout must be positive, got 0
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


def most_steps_of_any_rank(time, device):
    if not (dist.is_available() and dist.is_initialized()):
        return time
    most = torch.tensor(time, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
