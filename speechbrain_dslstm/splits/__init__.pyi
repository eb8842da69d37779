from .leaks import (
    check_leaks as check_leaks,
)
from .protocols import (
    PROTOCOLS as PROTOCOLS,
    LeakError as LeakError,
    Split as Split,
    count_folds as count_folds,
    make_split as make_split,
)
from .table import (
    write_folds as write_folds,
)
