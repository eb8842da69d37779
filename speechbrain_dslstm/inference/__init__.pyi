from .adaptation import Adaptation as Adaptation, adapt as adapt
from .answer import Answer as Answer
from .classifier import (
    EmotionClassifier as EmotionClassifier,
    load_safe as load_safe,
)
from .files import (
    FileResult as FileResult,
    FileResults as FileResults,
    classify_files as classify_files,
)
from .long_recordings import Segment as Segment, classify_long as classify_long
from .speech_activity import NoSpeechError as NoSpeechError
from .streaming import EmotionStream as EmotionStream
from .windowed_stream import WindowedStream as WindowedStream
