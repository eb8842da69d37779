from .arguments import (
    parse_arguments as parse_arguments,
)
from .record import (
    RunRecord as RunRecord,
)
