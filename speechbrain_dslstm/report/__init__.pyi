from .comparison import build_report as build_report
from .html import (
    read_baselines as read_baselines,
    write_json as write_json,
    write_report as write_report,
)
from .predictions import DIGITS as DIGITS, gather_runs as gather_runs
from .runs import NORMALIZATIONS as NORMALIZATIONS, RULES as RULES
