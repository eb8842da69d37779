from .active_speech import (
    ActiveSpeech as ActiveSpeech,
)
from .augment import (
    StreamAugment as StreamAugment,
    mixup as mixup,
)
from .cache import (
    FeatureCache as FeatureCache,
    FeatureMemory as FeatureMemory,
)
from .mel import (
    LogMelSpectrogram as LogMelSpectrogram,
)
from .mfcc import (
    MFCC39 as MFCC39,
)
from .normalization import (
    FeatureNormalization as FeatureNormalization,
)
from .whisper_mel import (
    WhisperMel as WhisperMel,
)
