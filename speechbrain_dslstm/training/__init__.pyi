from .checkpoints import (
    AtomicCheckpointer as AtomicCheckpointer,
    CheckpointError as CheckpointError,
)
from .data import (
    ReproducibleDataset as ReproducibleDataset,
    collect_statistics as collect_statistics,
    extract_batch as extract_batch,
    loader_options as loader_options,
    open_cache as open_cache,
    token_sequence as token_sequence,
)
from .nonfinite import (
    StepGuard as StepGuard,
    check_finite as check_finite,
)
from .optimization import (
    EarlyStoppingEpochCounter as EarlyStoppingEpochCounter,
    WeightAverage as WeightAverage,
    split_parameters as split_parameters,
    warmup_cosine as warmup_cosine,
)
from .preparation import (
    prepare_data as prepare_data,
)
from .random_states import (
    RandomStates as RandomStates,
)
from .signals import (
    StopSignals as StopSignals,
    shield_worker as shield_worker,
)
