from .brain import (
    ReliableBrain as ReliableBrain,
)
from .checkpoints import (
    AtomicCheckpointer as AtomicCheckpointer,
    CheckpointError as CheckpointError,
)
from .nonfinite import (
    StepGuard as StepGuard,
)
from .optimization import (
    EarlyStoppingEpochCounter as EarlyStoppingEpochCounter,
    WeightAverage as WeightAverage,
    warmup_cosine as warmup_cosine,
)
from .random_states import (
    RandomStates as RandomStates,
)
from .signals import (
    StopSignals as StopSignals,
)
