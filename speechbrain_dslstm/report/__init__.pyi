from .comparison import (
    build_report as build_report,
    inflation_chain as inflation_chain,
)
from .html import (
    read_baselines as read_baselines,
    write_json as write_json,
    write_report as write_report,
)
from .predictions import (
    DIGITS as DIGITS,
    gather_runs as gather_runs,
    read_report as read_report,
)
from .runs import (
    NORMALIZATIONS as NORMALIZATIONS,
    RULES as RULES,
    Answer as Answer,
    caveats as caveats,
    read_fold as read_fold,
    read_runs as read_runs,
)
