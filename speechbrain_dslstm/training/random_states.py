"""Save random states in checkpoints: a resumed run is the same bit for bit.

SpeechBrain's checkpoints hold no random states; and its data loader, which can
resume in the middle of an epoch, draws from the same generator as dropout.
"""

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    get_rank,
    if_main_process,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger

__all__ = ["RandomStates"]

logger = get_logger(__name__)


# Every rank has its own states to save
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomStates:
    """A recoverable for checkpoints that holds the random states of every rank.

    These are the states of the torch (CPU and the rank's GPU), NumPy and
    Python generators, and the training loader's base seed.

    Give ``loader_generator`` to the training loader, call ``start_epoch``
    before each pass over it, and add this object to the checkpointer.

    Example
    -------
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> states = RandomStates()
    >>> checkpointer = Checkpointer(
    ...     getfixture("tmp_path"), {"random_states": states}
    ... )
    >>> saved = checkpointer.save_checkpoint()
    >>> first = torch.rand(3)
    >>> found = checkpointer.recover_if_possible()
    >>> torch.equal(first, torch.rand(3))
    True
    """

    def __init__(self) -> None:
        self.loader_generator = torch.Generator()
        self.loader_seed = None
        self._inside_epoch = False

    def start_epoch(self) -> None:
        """Draw a seed for the loader; a resumed epoch keeps its earlier seed."""
        if not self._inside_epoch:
            # As a loader without a generator draws it
            self.loader_seed = int(torch.empty((), dtype=torch.int64).random_())
        self._inside_epoch = False
        self.loader_generator.manual_seed(self.loader_seed)

    @property
    def epoch_seed(self) -> int:
        """Seed that the loader of this epoch draws for its workers."""
        generator = torch.Generator().manual_seed(self.loader_seed)
        return int(
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        )

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Gather the states of all ranks; the first rank writes them."""
        states = [self._states()]
        if is_distributed_initialized():
            states *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, self._states())
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Restore the states of this rank."""
        states = torch.load(path, map_location="cpu")
        rank, ranks = 0, 1
        if is_distributed_initialized():
            rank, ranks = get_rank(), torch.distributed.get_world_size()
        if len(states) != ranks:
            logger.warning(
                f"the checkpoint was saved by {len(states)} processes and is "
                f"resumed by {ranks}: results will differ from those of an "
                "uninterrupted run"
            )
            return
        own = states[rank]
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
        kind, keys, *rest = own["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        version, numbers, gauss = own["python"]
        random.setstate((version, tuple(numbers), gauss))
        self.loader_seed = own["loader_seed"]
        self._inside_epoch = not end_of_epoch

    def _states(self) -> dict[str, Any]:
        """States of this rank, in types that ``weights_only`` can load."""
        cuda = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            cuda = torch.cuda.get_rng_state()
        kind, keys, *rest = np.random.get_state()
        keys = torch.from_numpy(keys.astype(np.int64))
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": [kind, keys, *rest],
            "python": random.getstate(),
            "loader_seed": self.loader_seed,
        }
