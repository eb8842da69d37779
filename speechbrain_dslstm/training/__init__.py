"""Everything that a training run needs around SpeechBrain's ``Brain``.

Read ``preparation`` first (from a corpus to manifests), then ``data`` (from
manifests to batches), ``brain`` (the training loop) and ``optimization``.
``checkpoints``, ``random_states``, ``nonfinite`` and ``signals`` let a run
survive kills, full disks, NaN and stop signals. ``launcher`` runs many folds.
``shards`` writes a corpus as tar files and reads batches from them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
