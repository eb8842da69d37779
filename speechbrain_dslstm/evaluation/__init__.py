"""Scores of a run: accuracy, calibration and confidence intervals.

Read ``metrics`` first (WA, UA, macro-F1, confusions), then ``results``, which
writes them at the end of a run. ``calibration`` fits a temperature, on
validation speakers or on what ``held_out`` reads of a cross-validation;
``bootstrap`` gives intervals over speakers, and ``plots`` draws the figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
