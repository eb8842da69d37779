from .classifier import (
    EmotionClassifier as EmotionClassifier,
    load_safe as load_safe,
)
from .explain import (
    Explanation as Explanation,
    plot_explanation as plot_explanation,
)
from .files import (
    FileResult as FileResult,
    classify_files as classify_files,
    find_audio as find_audio,
)
from .long_recordings import Segment as Segment, classify_long as classify_long
from .speech_activity import (
    NoSpeechError as NoSpeechError,
    SpeechActivity as SpeechActivity,
    check_speech as check_speech,
    measure_activity as measure_activity,
)
from .streaming import (
    EmotionStream as EmotionStream,
    with_normalization as with_normalization,
)
