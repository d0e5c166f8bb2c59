"""The certified runs with and without variable projection: solved to six digits, passes needed."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np

from nlsq_nb import curve_fit

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "fits" / "nist.py"


def certified():
    """The reader of the certified data sets that the tests use."""
    spec = importlib.util.spec_from_file_location("nist", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
