"""Export of a trained model as ONNX or as a torch.export program.

Read ``onnx_export`` first. ``utterance_graph`` is the model of whole
utterances as a graph, ``stream_graph`` that of a stream; ``onnx_runtime`` loads
an exported file as an ``EmotionClassifier``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
