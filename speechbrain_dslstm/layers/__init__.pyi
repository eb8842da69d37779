from .alignment import (
    AveragePoolAlignment as AveragePoolAlignment,
    RateAlignment as RateAlignment,
)
from .batch_norm import (
    MaskedBatchNorm as MaskedBatchNorm,
    StepBatchNorm as StepBatchNorm,
    masked_moments as masked_moments,
)
from .cnn import (
    LocalFeatureBlock as LocalFeatureBlock,
    LocalFeatureCNN as LocalFeatureCNN,
)
from .pooling import (
    MaskedMeanPooling as MaskedMeanPooling,
)
