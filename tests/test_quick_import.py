"""Importing quickly: what is postponed is there when it is called, and nobody else sees that it was."""

import subprocess
import sys

PROGRAM = """
import gc, sys
from pipeline.encoder.quick_import import importing_quickly
with importing_quickly():
    from sklearn.metrics import pairwise_distances
    assert not gc.isenabled()
assert gc.isenabled()
assert not {'sklearn', 'scipy'} & sys.modules.keys()
assert pairwise_distances([[0.0], [2.0]]).tolist() == [[0, 2], [2, 0]]
import sklearn.metrics
assert pairwise_distances is not sklearn.metrics.pairwise_distances
with importing_quickly():
    from sklearn.metrics import accuracy_score
assert accuracy_score is sklearn.metrics.accuracy_score
"""


def test_what_is_postponed_is_imported_when_it_is_called_and_real_for_everybody_afterwards() -> None:
    child = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
