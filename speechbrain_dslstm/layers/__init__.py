"""Layers around the DS-LSTM, each of which ignores padding.

Read ``cnn`` first, the local feature blocks of the paper; then ``alignment``,
which brings two frame rates to one, ``batch_norm`` and ``pooling``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
