"""SpeechBrain's ``Brain`` for runs that are stopped, killed or meet NaN.

The recipe's Brain defines the loss and the score. This module holds the parts
that do not depend on the task: optimisers, schedules, the average of weights,
checkpoints within an epoch, stop signals, and steps with NaN or Inf.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.logger import get_logger
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from speechbrain_dslstm.models.encoders import SelfSupervisedFrames
from speechbrain_dslstm.models.freezing import (
    freeze_parts,
    keep_frozen,
    to_names,
)
from speechbrain_dslstm.models.whisper_frames import WhisperFrames
from speechbrain_dslstm.training.console import Progress
from speechbrain_dslstm.training.data import ReproducibleDataset
from speechbrain_dslstm.training.nonfinite import StepGuard, check_finite
from speechbrain_dslstm.training.optimization import (
    WeightAverage,
    make_optimizer,
    make_schedule,
    split_parameters,
)
from speechbrain_dslstm.training.random_states import RandomStates
from speechbrain_dslstm.training.signals import StopSignals, shield_worker
from speechbrain_dslstm.utils.distributed import any_rank, mean_over_ranks
from speechbrain_dslstm.utils.files import name_errors
from speechbrain_dslstm.utils.threads import Threads, adapted_threads

__all__ = ["ReliableBrain"]

logger = get_logger(__name__)
SCHEDULES = ("lr_schedule", "encoder_lr_schedule")


class ReliableBrain(sb.Brain):
    """A Brain that resumes exactly, saves on signals and skips NaN steps.

    A subclass writes ``compute_forward``, ``compute_objectives`` and
    ``on_stage_end``; the latter calls ``log_epoch`` and ``save_epoch`` after
    validation. Where ``fit`` gets no ``valid_set``, it is called for that stage
    all the same, with a loss of None. The training loader must come from
    ``make_train_loader``. The other methods override those of
    ``speechbrain.Brain``, which calls them.

    Hyperparameters: ``model``, ``number_of_epochs``, ``epoch_counter``,
    ``average_decay``, ``on_nonfinite``, ``lr_schedule``, ``lr_interval`` and
    ``encoder_opt_class``. Optional: ``threads``, the number of CPU threads, else
    as many as other processes leave free; ``freeze``, the names of parts that
    stay as they are, without dropout and with the statistics of their batch
    norms; and ``origin``, the result of ``pretrained.initialise``, whose
    parameters learn at ``init_lr_factor`` times the rate.

    Arguments
    ---------
    *args
        As for ``speechbrain.Brain``.
    **kwargs
        As for ``speechbrain.Brain``.

    Raises
    ------
    FileNotFoundError
        ``--test_only`` is given, but there is no checkpoint.
    ValueError
        ``max_grad_norm`` is not positive. SpeechBrain passes it to torch as it
        is, and there a negative norm reverses the gradients.

    Example
    -------
    >>> hparams = {"model": torch.nn.Linear(1, 1), "average_decay": None}
    >>> hparams |= {"on_nonfinite": "skip", "max_grad_norm": -1.0}
    >>> ReliableBrain(hparams=hparams, run_opts={"device": "cpu"})
    Traceback (most recent call last):
        ...
    ValueError: max_grad_norm must be positive, got -1.0; .inf turns clipping off
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.max_grad_norm > 0:
            raise ValueError(
                "max_grad_norm must be positive, got "
                f"{self.max_grad_norm}; .inf turns clipping off"
            )
        saved = self.checkpointer
        if self.test_only and saved and saved.find_checkpoint() is None:
            hint = "train first, without --test_only"
            if self.debug:
                hint = "--debug sees no earlier checkpoints, so leave it out"
            raise FileNotFoundError(
                f"no checkpoint to test in {saved.checkpoints_dir}: {hint}"
            )
        # Before the average and DDP, which copy what is trained
        self.frozen = freeze_parts(
            self.hparams.model, to_names(getattr(self.hparams, "freeze", None))
        )
        self.average = None
        if self.hparams.average_decay is not None:
            self.average = WeightAverage(
                self.hparams.model, self.hparams.average_decay
            ).to(self.device)
        self.random_states = RandomStates()
        if self.checkpointer is not None:
            if self.average is not None:
                self.checkpointer.add_recoverable("average", self.average)
            self.checkpointer.add_recoverable(
                "random_states", self.random_states, optional_load=True
            )
        self.guard = StepGuard(
            self.hparams.model,
            self.hparams.on_nonfinite,
            self.nonfinite_patience,
        )
        self.signals = StopSignals()
        self.progress = Progress(not self.noprogressbar)
        self.loggers: list[Any] = []  # those of make_loggers
        self.threads: Threads | None = None
        self.stepped = self.stopping = False
        self.total_steps = self.train_loader = None

    @property
    def trained_model(self) -> torch.nn.Module:
        """The model to evaluate and save; averaged if ``average_decay`` is set."""
        if self.average is not None:
            return self.average.model
        return self.hparams.model

    def make_train_loader(
        self, dataset: DynamicItemDataset, **options: Any
    ) -> DataLoader:
        """Make the training loader, with ``options`` of a DataLoader.

        Its length gives the learning-rate schedule the number of steps.
        """
        loader = self.make_dataloader(
            dataset,
            sb.Stage.TRAIN,
            generator=self.random_states.loader_generator,
            worker_init_fn=shield_worker,
            **options,
        )
        if self.train_sampler is None:
            # SpeechBrain advances only the samplers it has made
            self.train_sampler = options.get(
                "batch_sampler", options.get("sampler")
            )
        self.train_loader = loader
        # The last step of an epoch may have fewer batches than the others
        steps = math.ceil(len(loader) / self.grad_accumulation_factor)
        self.total_steps = max(1, steps) * self.hparams.number_of_epochs
        return loader

    def init_optimizers(self) -> None:
        encoder, others = split_parameters(
            self.hparams.model, (SelfSupervisedFrames, WhisperFrames)
        )
        slower, factor = self._inherited()
        if self.hparams.encoder_opt_class is None:
            encoder, others = [], others + encoder
        if encoder or slower:
            parts = {
                "optimizer": (self.opt_class, others),
                "encoder_optimizer": (self.hparams.encoder_opt_class, encoder),
            }
            self.optimizers_dict = {
                name: make_optimizer(opt_class, parameters, slower, factor)
                for name, (opt_class, parameters) in parts.items()
                if parameters
            }
            self.optimizer = next(iter(self.optimizers_dict.values()))
            if self.checkpointer is not None:
                self.checkpointer.add_recoverables(self.optimizers_dict)
        else:
            super().init_optimizers()
        self.schedulers = {
            name: make_schedule(
                self.hparams.lr_schedule, optimizer, self.total_steps
            )
            for name, optimizer in zip(
                SCHEDULES, self.optimizers_dict.values(), strict=False
            )
        }
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables(self.schedulers)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for name, optimizer in zip(
            SCHEDULES, self.optimizers_dict.values(), strict=False
        ):
            scheduler = self.schedulers[name]
            planned = getattr(scheduler, "total_steps", scheduler.planned_steps)
            if planned not in (None, self.total_steps):
                self._plan_anew(scheduler, optimizer)
        epochs = self.hparams.number_of_epochs
        done = self.hparams.epoch_counter.current
        if done:
            self.progress.say(f"resumed after epoch {done} of {epochs}")

    def _plan_anew(
        self, scheduler: LRScheduler, optimizer: torch.optim.Optimizer
    ) -> None:
        """Put a schedule of the run's new length in place of the loaded one.

        It goes on after the steps that are done, at the rate that a run of the
        new length would have there.
        """
        fresh = make_schedule(
            self.hparams.lr_schedule, optimizer, self.total_steps
        )
        # One step back, as the next line computes the rate of a step
        fresh.last_epoch = scheduler.last_epoch - 1
        fresh._step_count = scheduler._step_count
        fresh.step()
        scheduler.load_state_dict(fresh.state_dict())
        logger.info(
            f"the learning rate follows a plan of {self.total_steps} steps, "
            f"of which {scheduler.last_epoch} are done"
        )

    def _inherited(self) -> tuple[list[torch.nn.Parameter], float]:
        """Parameters that came from another model, and the factor on their rate."""
        origin = getattr(self.hparams, "origin", None)
        factor = getattr(self.hparams, "init_lr_factor", 1.0)
        if origin is None or factor == 1:
            return [], 1.0
        known = dict(self.hparams.model.named_parameters())
        return [known[name] for name in origin["inherited"]], factor

    def step_schedules(self) -> None:
        """Advance the learning rate of every optimiser."""
        for scheduler in self.schedulers.values():
            scheduler.step()

    def fit(self, *args: Any, **kwargs: Any) -> None:
        # A signal ends the run after the next step, with a checkpoint
        with self.signals.deferred(), self._adapted_threads():
            try:
                super().fit(*args, **{**kwargs, "progressbar": False})
            finally:
                self.progress.stop()

    def _fit_valid(
        self, valid_set: DataLoader | None, epoch: int, enable: bool
    ) -> None:
        super()._fit_valid(valid_set, epoch, enable)
        if valid_set is None:
            # SpeechBrain ends no stage then, and so would save nothing
            self.on_stage_end(sb.Stage.VALID, None, epoch)

    def evaluate(self, *args: Any, **kwargs: Any) -> float:
        with self._adapted_threads():
            try:
                return super().evaluate(
                    *args, **{**kwargs, "progressbar": False}
                )
            finally:
                self.progress.stop()

    @contextmanager
    def _adapted_threads(self) -> Iterator[None]:
        """Use the CPUs that are free, or ``threads`` of them, in the block."""
        with adapted_threads(getattr(self.hparams, "threads", None)) as threads:
            self.threads = threads
            try:
                yield
            finally:
                self.threads = None

    def _adapt_threads(self) -> None:
        if self.threads is not None:
            self.threads.adapt()

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            epochs, batches = self.hparams.number_of_epochs, self.train_loader
            self.progress.start_epoch(epoch, epochs, len(batches), self.step)
            self.random_states.start_epoch()
            dataset = getattr(self.train_loader, "dataset", None)
            if isinstance(dataset, ReproducibleDataset):
                dataset.epoch_seed = self.random_states.epoch_seed
        else:
            self.progress.start_scoring()
            # SpeechBrain does this for the model in training, not its average
            self.trained_model.eval()

    def fit_batch(self, batch: PaddedBatch) -> torch.Tensor:
        # SpeechBrain's own never steps on batches that an epoch has left over
        batches, should_step = self._accumulated()
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            scaled_loss = self.scaler.scale(loss / batches)
            self.check_loss_isfinite(scaled_loss)
            scaled_loss.backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        value = loss.detach().cpu()
        self.progress.step(float(value))
        self._adapt_threads()
        return value

    def evaluate_batch(
        self, batch: PaddedBatch, stage: sb.Stage
    ) -> torch.Tensor:
        loss = super().evaluate_batch(batch, stage)
        self.progress.step()
        self._adapt_threads()
        return loss

    def _accumulated(self) -> tuple[int, bool]:
        """Number of batches in this batch's step, and whether it is the last."""
        factor, last = self.grad_accumulation_factor, len(self.train_loader)
        if self.debug:
            last = min(last, self.debug_batches)
        first = (self.step - 1) // factor * factor
        end = min(first + factor, last)
        return end - first, self.step == end

    def on_fit_batch_start(self, batch: PaddedBatch, should_step: bool) -> None:
        keep_frozen(self.frozen)
        self.guard.start(batch.id)

    def check_loss_isfinite(self, loss: torch.Tensor) -> None:
        # Noted only: optimizers_step decides on the whole step, on all ranks
        self.guard.check_loss(loss)

    def optimizers_step(self) -> None:
        gradients = [
            one.grad
            for one in self.modules.parameters()
            if one.grad is not None
        ]
        bad, self.stopping = any_rank(
            [
                self.guard.is_bad(gradients, self.scaler),
                self.signals.requested,
            ],
            self.device,
        )
        self.stepped = not bad
        if self.stepped:
            super().optimizers_step()
        else:
            self.zero_grad(set_to_none=True)
        epoch = self.hparams.epoch_counter.current
        self.guard.end(bad, f"epoch {epoch}, batch {self.step}")

    def on_fit_batch_end(
        self,
        batch: PaddedBatch,
        outputs: Any,
        loss: torch.Tensor,
        should_step: bool,
    ) -> None:
        if should_step:
            if self.hparams.lr_interval == "batch":
                self.step_schedules()
            if self.average is not None and self.stepped:
                self.average.update(self.hparams.model)

    def _should_save_intra_epoch_ckpt(self, *args: Any) -> bool:
        # Accumulated gradients are not in a checkpoint
        if not self._accumulated()[1]:
            return False
        return self.stopping or super()._should_save_intra_epoch_ckpt(*args)

    def _save_intra_epoch_ckpt(self) -> None:
        check_finite(self.checkpointer.recoverables, self.device)
        # Only the first rank's value is saved
        self.avg_train_loss = mean_over_ranks(self.avg_train_loss, self.device)
        super()._save_intra_epoch_ckpt()
        self._exit_if_stopping()

    def log_epoch(
        self,
        meta: Mapping[str, float],
        train_stats: Mapping[str, float],
        valid_stats: Mapping[str, float],
    ) -> None:
        """Write the statistics of an epoch to every logger."""
        for one in self.loggers:
            with name_errors(getattr(one, "save_file", "the train log")):
                one.log_stats(meta, train_stats, valid_stats)

    def save_epoch(self, meta: Mapping[str, float]) -> None:
        """Save after validation; keep the newest and the best by "score".

        If a signal has requested a stop, the process then ends.
        """
        if self.checkpointer is not None:
            check_finite(self.checkpointer.recoverables, self.device)
            # Two of each, so that one is left if the other is damaged
            self.checkpointer.save_and_keep_only(
                meta=dict(meta), num_to_keep=2, max_keys=["score"]
            )
        (self.stopping,) = any_rank([self.signals.requested], self.device)
        self._exit_if_stopping()

    def _exit_if_stopping(self) -> None:
        """End the process if a signal has requested it; a checkpoint is saved."""
        if self.stopping:
            logger.warning(
                "stopped by a signal after saving a checkpoint; run the same "
                "command again to resume"
            )
            self.signals.exit()
