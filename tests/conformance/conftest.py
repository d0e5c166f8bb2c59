"""Kernels of a session are compiled anew in a folder of its own, unless NLSQ_NB_CACHE names one already."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if "NLSQ_NB_CACHE" not in os.environ:
            folder = tmp_path_factory.mktemp("kernels")
            folder.chmod(0o700)
            patch.setenv("NLSQ_NB_CACHE", str(folder))
        yield
