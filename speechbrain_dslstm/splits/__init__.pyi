from .leaks import (
    check_leaks as check_leaks,
    leak_summary as leak_summary,
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
