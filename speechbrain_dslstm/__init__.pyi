from . import (
    audio as audio,
    bulk as bulk,
    cli as cli,
    corpora as corpora,
    ds_lstm as ds_lstm,
    evaluation as evaluation,
    export as export,
    features as features,
    hparams as hparams,
    inference as inference,
    kernels as kernels,
    layers as layers,
    lengths as lengths,
    models as models,
    pretrained as pretrained,
    report as report,
    server as server,
    splits as splits,
    training as training,
    utils as utils,
)
from .ds_lstm import DSLSTM as DSLSTM
from .features import MFCC39 as MFCC39, LogMelSpectrogram as LogMelSpectrogram
from .inference import EmotionClassifier as EmotionClassifier
from .models import DualLevelClassifier as DualLevelClassifier
