"""Two sizes of the suite: what everybody and CI run, and the whole at night.

Each fault has at least one case in the small size; its other cases, and more
kills, requests and minutes of audio, run where DSLSTM_NIGHTLY=1 is set.
"""

import os

import pytest

NIGHT = bool(os.environ.get("DSLSTM_NIGHTLY"))
nightly = pytest.mark.skipif(not NIGHT, reason="runs with DSLSTM_NIGHTLY=1")


def at_night(*values):
    """One case of ``pytest.mark.parametrize`` that runs at night only."""
    return pytest.param(*values, marks=nightly)
