"""Dual-Sequence LSTM speech emotion recognition for SpeechBrain.

These are the folders and single modules. Each imports only from those below it;
the ``__init__`` of a folder says which file to read first.

==============  ============================================================
``cli``         the command ``dslstm``
``server``      a page and an HTTP interface to try a model on
``export``      a trained model as ONNX or torch.export program
``bulk``        many recordings on many cores, with Ray Data
``inference``   from a recording to an emotion, with a trained model
``report``      from finished runs to tables, figures and one HTML page
``pretrained``  the folder of a trained model: written, found and checked
``evaluation``  scores, calibration and intervals of a run
``training``    everything a run needs around SpeechBrain's ``Brain``
``models``      from features to log-posteriors, and the losses
``ds_lstm``     the DS-LSTM: equations, layer and compiled backends
``layers``      CNN, alignment of frame rates, batch norm, pooling
``corpora``     one module for each corpus, one manifest for all
``kernels``     compiled CPU loops of the CNN
``features``    MFCC-39 and log-mel spectrograms, their normalisation
``splits``      training, validation and test subsets, and the leak guard
``audio``       any audio file as a mono waveform, or an ``AudioError``
``hparams``     the YAML of a system, and what identifies a run
``lengths``     relative lengths, sample and frame counts, masks
``utils``       distributed sums, atomic files, compiled loops
``shipped``     the trained model that comes with the package
==============  ============================================================
"""

from importlib.metadata import version

import lazy_loader

from speechbrain_dslstm.utils.versions import check_pair

check_pair()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("speechbrain-dslstm")
