from .brain import (
    ReliableBrain as ReliableBrain,
)
from .checkpoints import (
    AtomicCheckpointer as AtomicCheckpointer,
    CheckpointError as CheckpointError,
)
from .data import (
    ClipReader as ClipReader,
    ReproducibleDataset as ReproducibleDataset,
    collect_statistics as collect_statistics,
    evaluation_options as evaluation_options,
    extract_batch as extract_batch,
    loader_options as loader_options,
    open_cache as open_cache,
)
from .launcher import (
    Job as Job,
    run_jobs as run_jobs,
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
    prepare_tokenizer as prepare_tokenizer,
)
from .random_states import (
    RandomStates as RandomStates,
)
from .signals import (
    StopSignals as StopSignals,
    shield_worker as shield_worker,
)
