"""The certified runs with and without variable projection: right to six digits, passes needed."""

import importlib.util
import sys
import warnings
from pathlib import Path

from nlsq_nb import Model, curve_fit

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "fits" / "nist.py"


def certified():
    """The reader of the certified data sets that the tests use."""
    spec = importlib.util.spec_from_file_location("nist", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nist"] = module
    spec.loader.exec_module(module)
    return module


def main():
    warnings.simplefilter("ignore")
    nist = certified()
    print("38 certified runs, default settings otherwise")
    for separable in ("auto", False):
        solved = passes = 0
        for name in nist.MODELS:
            p = nist.problem(name)
            model = Model(p.model, x=p.variables, params=p.params)
            for start in p.starts:
                result = curve_fit(model, p.x, p.y, start, separable=separable)
                solved += max(nist.digits(result.popt[order], p.values) for order in p.labellings()) >= 6
                passes += result.nfev
        print(f"separable={separable!s:<6} right to 6 digits: {solved} of 38, passes: {passes}")


if __name__ == "__main__":
    main()
