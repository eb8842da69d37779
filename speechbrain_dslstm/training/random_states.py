"""Random states of a run, so that one that is resumed goes on bit for bit.

SpeechBrain's checkpoints hold no random states, and its data loader, which
resumes in the middle of an epoch, draws from the same generator as dropout.
"""

import functools
import random

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


# Every rank has states of its own to save
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomStates:
    """Recoverable that holds the random states of every rank.

    Those of torch (of the CPU and the rank's GPU), numpy and Python, and what
    the workers of the training loader are seeded by.

    Give ``loader_generator`` to the training loader, call ``start_epoch``
    before each pass over it, and add this to the checkpointer.

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

    def __init__(self):
        self.loader_generator = torch.Generator()
        self.loader_seed = None
        self._inside_epoch = False

    def start_epoch(self):
        """Seed the loader: anew, or as the epoch that is resumed did.

        Example
        -------
        >>> states = RandomStates()
        >>> states.start_epoch()
        >>> states.loader_generator.initial_seed() == states.loader_seed
        True
        """
        if not self._inside_epoch:
            # As a loader without a generator draws it
            self.loader_seed = int(torch.empty((), dtype=torch.int64).random_())
        self._inside_epoch = False
        self.loader_generator.manual_seed(self.loader_seed)

    @mark_as_saver
    def save(self, path):
        """Gather the states of all ranks; the first one writes them.

        Arguments
        ---------
        path : str or pathlib.Path
            The file.
        """
        states = [self._states()]
        if is_distributed_initialized():
            states *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, self._states())
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Go on with the states of this rank.

        Arguments
        ---------
        path : str or pathlib.Path
            The file.
        end_of_epoch : bool
            Whether the next epoch is a new one.
        """
        states = torch.load(path, map_location="cpu")
        rank, ranks = 0, 1
        if is_distributed_initialized():
            rank, ranks = get_rank(), torch.distributed.get_world_size()
        if len(states) != ranks:
            logger.warning(
                f"saved by {len(states)} processes, resumed by {ranks}: the "
                "run goes on, but not exactly as it would have"
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

    def _states(self):
        """This rank's, as what torch loads without running anything."""
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
