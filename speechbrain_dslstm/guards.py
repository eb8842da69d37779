"""What keeps a training run whole: bad numbers, signals, lost processes.

``StepGuard`` finds the steps whose loss or gradients are NaN or Inf,
``check_finite`` keeps such numbers out of checkpoints, ``StopSignals`` turns
the signals of a scheduler into a request to save and end, and ``init_group``
starts the group of ranks with a timeout. All decisions are taken by all ranks
together: a rank that went its own way would leave the others waiting.
"""

import datetime
import math
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import (
    get_local_rank,
    get_rank,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger
from torch.nn.utils import get_total_norm

from speechbrain_dslstm.ranks import any_rank

__all__ = [
    "StepGuard",
    "StopSignals",
    "check_finite",
    "init_group",
    "shield_worker",
]

logger = get_logger(__name__)

MODES = ("skip", "stop")


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


class StopSignals:
    """Makes SIGTERM and SIGUSR1 a request to save and to end with code 143.

    Schedulers send them some time before they kill a job. While ``deferred``
    they set ``requested``, which the training loop looks at; elsewhere there
    is nothing to save, and the process ends at once. Further signals do
    nothing.

    Example
    -------
    >>> signals = StopSignals()
    >>> with signals:
    ...     with signals.deferred():
    ...         signal.raise_signal(signal.SIGUSR1)
    ...         print("saved")
    Traceback (most recent call last):
        ...
    SystemExit: 143
    >>> signals.restore()
    """

    NAMES = ("SIGTERM", "SIGUSR1")
    CODE = 143

    def __init__(self):
        self.requested = False
        self._deferring = False
        self._previous = {}

    def __enter__(self):
        for name in self.NAMES:
            number = getattr(signal, name)
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        _end_workers()
        if not self.requested:
            self.restore()
            return
        # The process is about to end, with its code and not by a signal
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def restore(self):
        """Give back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_):
        first, self.requested = not self.requested, True
        if first and not self._deferring:
            self.exit()

    @contextmanager
    def deferred(self):
        """Where a signal only sets ``requested``; at the end it counts.

        Yields
        ------
        None
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            self.exit()

    def exit(self):
        """End the process."""
        raise SystemExit(self.CODE)


def _end_workers(seconds=10):
    """End loader workers that are left; at exit Python waits for them.

    More than one signal, as they do not heed the first, and two that come
    before they can look are one.
    """
    deadline = time.monotonic() + seconds
    for child in multiprocessing.active_children():
        while child.daemon and child.is_alive():
            last = time.monotonic() > deadline
            child.kill() if last else child.terminate()
            child.join(0.1)


def shield_worker(worker_id):
    """Leave signals that reach a whole job to the process that saves.

    A loader's worker that died of one would take its parent along before the
    checkpoint. The second SIGTERM ends it, as parents end their workers.

    Arguments
    ---------
    worker_id : int
        As ``worker_init_fn`` of a ``DataLoader`` gets it.

    Example
    -------
    >>> data = torch.utils.data.DataLoader(
    ...     [1, 2], num_workers=1, worker_init_fn=shield_worker
    ... )
    >>> [batch.item() for batch in data]
    [1, 2]
    """

    def end(*_):
        """End the worker."""
        # Not an error in the eyes of torch, which watches its workers
        os._exit(0)

    def wait_for_second(*_):
        """Take the next one for the parent's."""
        signal.signal(signal.SIGTERM, end)

    signal.signal(signal.SIGTERM, wait_for_second)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
