"""Write, find and check the folder of a trained model.

Read ``model_folder`` first. ``sources`` finds a folder in the package, on disk
or on a hub. ``safe_format`` writes and reads the part of a folder that is data
only, with the help of ``architecture``, which describes a model as JSON, and
``untrusted_files``, which limits what is read from files of unknown origin.
``initialisation`` starts a training from such a folder, which ``origin`` reads,
and ``card`` writes and reads what a model came from. ``names`` are the models of
the package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
