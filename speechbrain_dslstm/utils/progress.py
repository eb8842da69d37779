"""A progress bar that leaves nothing behind."""

from collections.abc import Iterable
from typing import TypeVar

from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

__all__ = ["track"]

Item = TypeVar("Item")


def track(items: Iterable[Item], title: str) -> Iterable[Item]:
    """Iterate with a bar on a terminal, which is removed at the end.

    In a pipe, and in all but the main process, there is none.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    hidden = None if if_main_process() else True
    return tqdm(items, title, leave=False, dynamic_ncols=True, disable=hidden)
