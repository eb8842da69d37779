"""Settings of a run: its command line, its record, and the code that made it.

Read ``arguments`` first (from a command line to overrides of the YAML), then
``record`` (what a folder was trained with, and what a rerun may change).
``documentation`` lists the keys of a system with their comments, ``provenance``
finds the version and commit of this package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
