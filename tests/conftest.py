"""Every session of tests compiles its kernels itself, and what lasts in it is not searched for garbage again."""

import gc
import os

import pytest

from nlsq_nb.backends.small import compiled_run


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory):
    """Kernels go to a folder that all workers share, unless NLSQ_NB_CACHE names one already."""
    with pytest.MonkeyPatch.context() as patch:
        if "NLSQ_NB_CACHE" not in os.environ:
            base = tmp_path_factory.getbasetemp()
            folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
            folder.mkdir(mode=0o700, exist_ok=True)
            patch.setenv("NLSQ_NB_CACHE", str(folder))
        compiled_run()  # not in a test of Hypothesis, whose tracing makes minutes of seconds
        yield


@pytest.fixture(scope="module", autouse=True)
def _lasting_objects():
    """Thousands of tests and hundreds of compiled kernels make a collection take a second: set them apart."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)  # Numba makes objects by the million: at 700 a twentieth of its time is theirs
