"""A page and an HTTP interface to try a model on: ``dslstm serve``.

Read ``app`` first: its routes. ``scoring`` turns an upload into an answer in a
bounded queue of threads, ``limits`` refuses what is too large, too slow or not
allowed before it is read whole. ``page`` holds the files of the page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
