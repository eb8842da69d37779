"""The folder of a trained model: how it is written, found and checked.

Read ``model_folder`` first. ``sources`` finds a folder in the package, on disk
or on a hub; ``architecture`` describes a model as JSON; ``safe_format`` writes
and reads that description with the weights; ``untrusted_files`` bounds what a
stranger's files may hold.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
