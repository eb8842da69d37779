"""Dual-Sequence LSTM speech emotion recognition for SpeechBrain.

======================  ====================================================
stage                   module
======================  ====================================================
lengths and masks       ``speechbrain_dslstm.lengths``
waveform -> features    ``speechbrain_dslstm.features``, ``.feature_cache``
normalisation           ``speechbrain_dslstm.normalization``
features -> CNN         ``speechbrain_dslstm.cnn``, ``.conv_pool``
two rates -> one        ``speechbrain_dslstm.alignment``
the DS-LSTM             ``speechbrain_dslstm.ds_lstm``
frames -> utterance     ``speechbrain_dslstm.pooling``
encoder's frames        ``speechbrain_dslstm.encoders``
transcripts             ``speechbrain_dslstm.text``
waveform -> emotion     ``speechbrain_dslstm.models``, ``.embedding``
what is learnt          ``speechbrain_dslstm.targets``, ``.dimensions``
what feeds training     ``speechbrain_dslstm.loading``, ``.training``
corpora and splits      ``speechbrain_dslstm.corpora``, ``.protocols``
systems' YAMLs          ``speechbrain_dslstm.hparams``
training and its files  ``speechbrain_dslstm.training``, ``.results``
what outlives a kill    ``speechbrain_dslstm.checkpointing``, ``.resuming``
scores and pictures     ``speechbrain_dslstm.metrics``, ``.plots``
intervals and reports   ``speechbrain_dslstm.statistics``, ``.report``
pretrained models       ``speechbrain_dslstm.inference``, ``.pretrained``
models of strangers     ``speechbrain_dslstm.safe_loader``
streams and exports     ``speechbrain_dslstm.streaming``, ``.export``
command line            ``speechbrain_dslstm.cli``
======================  ====================================================
"""

from importlib.metadata import version

from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram
from speechbrain_dslstm.inference import EmotionClassifier
from speechbrain_dslstm.models import DualLevelClassifier

__all__ = [
    "DSLSTM",
    "MFCC39",
    "LogMelSpectrogram",
    "DualLevelClassifier",
    "EmotionClassifier",
]
__version__ = version("speechbrain-dslstm")
