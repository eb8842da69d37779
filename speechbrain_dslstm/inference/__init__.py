"""Emotions of recordings, predicted with a trained model.

Read ``classifier`` first; it returns an ``answer``. ``files`` classifies many
files, which ``folders`` finds, ``long_recordings`` one file window by window,
``streaming`` audio as it arrives (with the delay that ``receptive_field``
defines, and cut to its speech by ``active_stream``), ``windowed_stream`` the
last seconds of such audio. ``speech_activity`` refuses silence and noise,
``adaptation`` fits the feature statistics to recordings without labels, and
``explain`` shows which spectrogram the DS-LSTM reads when.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
