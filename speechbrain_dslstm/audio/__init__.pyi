from .checks import (
    LONGEST_CLIP as LONGEST_CLIP,
    LOUDEST as LOUDEST,
    AudioError as AudioError,
    check_samples as check_samples,
    printable as printable,
)
from .reading import (
    decode as decode,
    load_audio as load_audio,
    open_audio as open_audio,
    read_blocks as read_blocks,
)
