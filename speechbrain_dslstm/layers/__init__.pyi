from .alignment import (
    AveragePoolAlignment as AveragePoolAlignment,
    RateAlignment as RateAlignment,
)
from .batch_norm import (
    MaskedBatchNorm as MaskedBatchNorm,
    StepBatchNorm as StepBatchNorm,
)
from .cnn import (
    LocalFeatureCNN as LocalFeatureCNN,
)
from .pooling import (
    MaskedMeanPooling as MaskedMeanPooling,
    MaskedStatisticsPooling as MaskedStatisticsPooling,
)
