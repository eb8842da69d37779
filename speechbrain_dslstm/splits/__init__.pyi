from .leaks import (
    check_leaks as check_leaks,
    format_leak_summary as format_leak_summary,
    identical_recordings as identical_recordings,
    leak_summary as leak_summary,
    leak_table as leak_table,
)
from .protocols import (
    PROTOCOLS as PROTOCOLS,
    LeakError as LeakError,
    Protocol as Protocol,
    Split as Split,
    count_folds as count_folds,
    make_split as make_split,
    split_hash as split_hash,
)
from .table import (
    write_folds as write_folds,
)
