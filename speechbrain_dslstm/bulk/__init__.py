"""Many recordings on many cores, with Ray Data: ``dslstm classify-dataset``.

Read ``job`` first: it lists the recordings, cuts them into parts, and has Ray's
actors answer one part after the other. ``sources`` lists folders, tables and
shards, local or at an address that fsspec knows; ``reading`` fetches what is not
a local file; ``worker`` is the actor with the model; ``answers`` writes each part
as a Parquet file and knows from these files what is done.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
