"""From finished runs to tables, figures and one HTML page.

Read ``runs`` first, which reads run folders; then ``comparison``, which scores
and compares them. ``predictions`` reads earlier reports, ``tables`` and
``html`` write the pages.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
