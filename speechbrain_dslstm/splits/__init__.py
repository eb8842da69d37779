"""From a manifest to training, validation and test subsets.

Read ``protocols`` first: the named protocols and ``make_split``. ``folds`` has
the ways to hold utterances out, ``leaks`` the check that no speaker, session,
sentence or recording is in two subsets, and ``table`` writes folds as CSV.
``python -m speechbrain_dslstm.splits`` prints leaks and writes folds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
