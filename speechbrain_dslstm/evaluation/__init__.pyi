from .bootstrap import (
    bootstrap_scores as bootstrap_scores,
    compare as compare,
    mcnemar as mcnemar,
)
from .calibration import (
    calibration_report as calibration_report,
    cross_fit_temperature as cross_fit_temperature,
    expected_calibration_error as expected_calibration_error,
    fit_temperature as fit_temperature,
)
from .metrics import (
    METRICS as METRICS,
    DimensionStats as DimensionStats,
    EmotionStats as EmotionStats,
    format_confusion as format_confusion,
    scores as scores,
    scores_from_confusion as scores_from_confusion,
)
