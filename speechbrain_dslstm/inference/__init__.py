"""From a recording to an emotion, with a trained model.

Read ``classifier`` first. ``files`` classifies many files, ``long_recordings``
works window by window, ``streaming`` sample by sample (``receptive_field``
says with which delay), ``speech_activity`` refuses silence and noise, and
``explain`` shows what the DS-LSTM listened to.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
