"""Audio files and arrays as waveforms of a given rate, or an ``AudioError``.

Read ``reading`` first: ``load_audio`` and ``read_blocks`` for everybody,
``open_audio`` and ``decode`` for callers that count samples themselves.
``inputs`` knows what may be given instead of a path, ``kinds`` recognises the
kind of a file, ``structure`` finds joined files and repairs headers that do not
know the length, ``media`` decodes with FFmpeg what libsndfile does not,
``channels`` mixes or selects channels, and ``checks`` refuses bad samples.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
