"""Everything a training run needs around SpeechBrain's ``Brain``.

Read ``preparation`` first (corpus to manifests), then ``data`` (manifests to
batches) and ``optimization``. ``checkpoints``, ``random_states``,
``nonfinite`` and ``signals`` make a run survive kills, full disks, NaN and
stop signals.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
