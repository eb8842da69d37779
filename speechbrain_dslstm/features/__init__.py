"""From a waveform to features: MFCC-39 and log-mel spectrograms.

Read ``extractor`` first, which frames the waveform and counts the frames, then
``mfcc`` and ``mel``, one feature each; ``whisper_mel`` is the input of the
Whisper encoder. ``active_speech`` cuts the waveform to its speech
before; ``voicing`` finds voices for it.
``normalization`` standardises features, ``augment`` changes them in training,
and ``cache`` keeps them on disk.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
