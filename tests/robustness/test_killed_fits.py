"""Fits that are killed at random moments: every checkpoint is whole, and the fit that goes on has the same bits."""

import json
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

# One process prepares and forks; its children fit, and are killed.
KILLED = textwrap.dedent("""
    import json, os, random, signal, sys, threading, time, traceback, warnings
    from pathlib import Path
    import h5py
    import numpy as np
    from nlsq_nb import curve_fit
    from nlsq_nb.errors import CheckpointError
    from nlsq_nb.observe.checkpoint_file import newest
    from nlsq_nb.observe.checkpoint_image import open_image

    folder, kills, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    random.seed(kills)
    rng = np.random.default_rng(5)
    x = rng.uniform(0.0, 10.0, n)
    y = 5.0 * np.exp(-0.5 * x) + 1.0 + rng.normal(0.0, 0.1, n)
    y[:: 50] += 3.0
    with h5py.File(folder / "rows.h5", "w") as file:
        file["x"], file["y"] = x, y

    def batches():
        for lo in range(0, n, 100_003):
            yield x[lo : lo + 100_003], y[lo : lo + 100_003]

    streamed = {"chunk_size": 131_072, "loop_strategy": "loop"}
    FITS = {
        "arrays": (lambda: (x, y), {"separable": False}),
        "file": (lambda: folder / "rows.h5", streamed | {"loss": "soft_l1", "f_scale": 0.1}),
        "function": (lambda: batches, streamed | {"warmup_sample_size": 1_000_000, "lbfgs_history_size": 3}),
        "generator": (batches, streamed | {"bounds": ([0.0, 0.0, 0.0], [4.5, 9.0, 9.0]), "separable": False}),
    }

    def fit(kind, **more):
        source, how = FITS[kind]
        found = curve_fit("a*exp(-b*x) + c", source(), p0=[1.0, 0.1, 5.0], n_threads=1, **how, **more)
        return [*map(float.hex, found.popt), *map(float.hex, found.pcov.ravel()), found.sse.hex(), found.nfev]

    def child(kind, where, wait=None, **more):
        '''What a process finds, or None when it is killed.'''
        out = where.with_suffix(".json")
        out.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                found = fit(kind, checkpoint_dir=where, checkpoint_frequency=1, **more)
                out.with_suffix(".new").write_text(json.dumps(found))
                out.with_suffix(".new").rename(out)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if wait is not None:
            time.sleep(wait)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return json.loads(out.read_text()) if status == 0 else None

    def step(where):
        '''The last complete step of a killed fit: its phase and iteration.'''
        whole = [path for path in where.glob("checkpoint_*") if where.is_dir()]
        for path in whole:
            open_image(path.read_bytes())  # raises when a bit is wrong
        return newest(where).name.split(".")[0] if whole else ""

    uninterrupted, lasts, told = {}, {}, []
    for kind in FITS:
        fit(kind)  # compiles
    assert threading.active_count() == 1
    for kind in FITS:
        begin = time.perf_counter()
        uninterrupted[kind] = child(kind, folder / f"{kind} whole")
        lasts[kind] = time.perf_counter() - begin
    done, fits = 0, 0
    while done < kills:
        kind, where, more, found = random.choice(list(FITS)), folder / f"fit {fits}", {}, None
        fits += 1
        while found is None:
            # the last one is left alone; one that goes on may be killed as well
            wait = random.uniform(0.0, lasts[kind]) if done < kills and (not more or random.random() < 0.5) else None
            found = child(kind, where, wait, **more)
            if found is None:
                done += 1
                at = step(where)
                told.append((kind, at, bool(more)))
                more = {"resume_from_checkpoint": where} if at else {}
        assert found == uninterrupted[kind], (kind, told[-1])
    sys.stdout.write(json.dumps(told))
""")


def killed(folder, kills, n):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(kills), str(n)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_a_fit_of_a_million_points_that_is_killed_goes_on_to_the_same_bits(tmp_path, kills, record_property):
    told = killed(tmp_path, kills, 1_000_000)
    assert len(told) == kills
    phases = Counter(at.split("_iter")[0] or "before the first checkpoint" for _, at, _ in told)
    record_property("killed in", dict(phases))
    assert phases["checkpoint_phase1"] > 0
    assert kills < 50 or len(phases) == 3
