"""Tables, figures and one HTML page from finished runs.

Read ``runs`` first, which reads the folders of train.py; then ``comparison``,
which scores and compares the runs. ``predictions`` reads earlier reports;
``opening``, ``tables`` and ``html`` write the pages.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
