from .bootstrap import (
    bootstrap_scores as bootstrap_scores,
    compare as compare,
    mcnemar as mcnemar,
    speaker_counts as speaker_counts,
)
from .calibration import (
    calibration_report as calibration_report,
    expected_calibration_error as expected_calibration_error,
    fit_temperature as fit_temperature,
)
from .metrics import (
    METRICS as METRICS,
    DimensionStats as DimensionStats,
    EmotionStats as EmotionStats,
    format_confusion as format_confusion,
    interval as interval,
    score_counts as score_counts,
    scores as scores,
    scores_from_confusion as scores_from_confusion,
)
from .results import (
    append_row as append_row,
    headline as headline,
    print_results as print_results,
    read_rows as read_rows,
    selection_score as selection_score,
    write_results as write_results,
)
