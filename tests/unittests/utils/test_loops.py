"""Compiled loops are imported on first use."""

import subprocess
import sys

from speechbrain_dslstm.utils.loops import Loops


def test_nothing_is_imported_before_the_first_use():
    code = (
        "import sys\n"
        "from speechbrain_dslstm.kernels import batch_norm_numba\n"
        "loops = batch_norm_numba.LOOPS\n"
        "assert 'numba' not in sys.modules and loops.name not in sys.modules\n"
        "assert loops.problem is None\n"
        "assert loops.load() is sys.modules[loops.name] is loops.load()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failed_import_is_a_problem(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    name = "speechbrain_dslstm.kernels.conv_pool_loops"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(
        sys.modules, "speechbrain_dslstm.utils.compiled", raising=False
    )
    loops = Loops(name)
    assert loops.problem.startswith("compiled loops do not import (")
    assert loops.problem == loops.problem
