from .branches import (
    CNNLSTMBranch as CNNLSTMBranch,
    LinearBranch as LinearBranch,
    MFCCBranch as MFCCBranch,
    SpectrogramBranch as SpectrogramBranch,
    TextBranch as TextBranch,
)
from .calibration import (
    TemperatureScaling as TemperatureScaling,
)
from .dual_level import (
    DualLevelClassifier as DualLevelClassifier,
)
from .embedding import (
    DualSequenceEmbedding as DualSequenceEmbedding,
)
from .encoders import (
    SelfSupervisedFrames as SelfSupervisedFrames,
    Waveform as Waveform,
    open_encoder as open_encoder,
)
from .losses import (
    class_weights as class_weights,
    concordance as concordance,
    count_outputs as count_outputs,
    dimension_loss as dimension_loss,
    fusion_loss as fusion_loss,
    mix_targets as mix_targets,
    vote_shares as vote_shares,
)
from .streams import (
    FeatureSequence as FeatureSequence,
    FeatureStream as FeatureStream,
    Sequence as Sequence,
)
from .whisper import (
    WhisperEncoder as WhisperEncoder,
)
from .whisper_frames import (
    EncoderLayers as EncoderLayers,
    WhisperFrames as WhisperFrames,
)
