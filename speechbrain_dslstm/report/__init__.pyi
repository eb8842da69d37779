from .comparison import (
    build_report as build_report,
    inflation_chain as inflation_chain,
)
from .html import (
    read_yardsticks as read_yardsticks,
    write_json as write_json,
    write_report as write_report,
)
from .predictions import (
    DIGITS as DIGITS,
    encode_answers as encode_answers,
    gather_runs as gather_runs,
    list_utterances as list_utterances,
    read_report as read_report,
)
from .runs import (
    IDENTITY as IDENTITY,
    NORMALIZATIONS as NORMALIZATIONS,
    RULES as RULES,
    TASK as TASK,
    caveats as caveats,
    check_values as check_values,
    fold_command as fold_command,
    read_fold as read_fold,
    read_runs as read_runs,
    shorten as shorten,
)
