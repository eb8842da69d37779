"""The Dual-Sequence LSTM.

Read ``equations`` first, one line of code for each equation of the paper, then
``layer``, the module. ``backends`` chooses between the kernels, each of which
computes the same as ``equations``: ``kernel_torch`` in plain torch,
``kernel_scan`` for export, ``kernel_numba`` on CPUs and ``kernel_triton`` on
GPUs, the last two with their compiled loops in a module beside them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
