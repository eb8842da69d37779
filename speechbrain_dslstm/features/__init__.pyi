from .augment import (
    StreamAugment as StreamAugment,
    change_speed as change_speed,
    mixup as mixup,
)
from .cache import (
    FeatureCache as FeatureCache,
    SpeedCache as SpeedCache,
)
from .mel import (
    LogMelSpectrogram as LogMelSpectrogram,
)
from .mfcc import (
    MFCC39 as MFCC39,
)
from .normalization import (
    FeatureNormalization as FeatureNormalization,
    RunningNormalization as RunningNormalization,
)
