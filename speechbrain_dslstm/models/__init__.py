"""From features to log-posteriors of emotions, and the losses.

Read ``dual_level`` first: the model of the paper. ``streams`` holds its inputs,
``branches`` its two levels (and a third for text), ``losses`` what they are
trained with. ``whisper`` is the encoder of Whisper, ``whisper_weights`` reads its
weights, and ``whisper_frames`` makes its layers a stream; ``encoders`` does so
with SpeechBrain's wrappers of encoders. ``embedding`` fits the model into
SpeechBrain's ``EncoderClassifier``, and ``calibration`` scales posteriors by a
temperature. ``freezing`` names parts that are not
trained.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
