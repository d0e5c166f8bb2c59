"""The lines of a running fit at each verbosity, and what the user's callback is told."""

import logging
import re
import threading

import h5py
import numpy as np
import pytest

from nlsq_nb import HDF5Source, curve_fit
from nlsq_nb.errors import StopFit
from nlsq_nb.events import (
    CostGuardTripped,
    Event,
    FirstPassStarted,
    HistoryFilled,
    LineSearchFailed,
    PassProgress,
    PhaseDone,
    PhaseStarted,
    RoundPlayed,
    StartChosen,
    StartFitted,
    StartsDrawn,
    StepClipped,
    StepDone,
    StepModeChosen,
    WarmStartDetected,
    WarmupStarted,
    WarmupStepDone,
)
from nlsq_nb.observe.callback import CallbackObserver
from nlsq_nb.observe.progress import ProgressLog

THETA = (5.0, 0.5, 1.0)
PARAMS = "    params: 5 0.5 1"
PASS = PassProgress(12_345_678, 100_000_000, 0.385)


def warmup_step(k, limit=500):
    return WarmupStepDone(k, limit, 6.19529, 44.2, 0.1, THETA)


def newton_step(k, limit=100):
    return StepDone(k, limit, 4.789448, 44.23933, 1.405842, 1.0, accepted=True, theta=THETA)


WARMED = (
    PhaseStarted(0, "normalization_setup"),
    PhaseDone(0, "normalization_setup", "", 0, {}),
    PhaseStarted(1, "lbfgs_warmup"),
    WarmupStarted(),
    StepModeChosen("careful", 0.41234567),
    StepClipped(3.25, 0.1),
    warmup_step(1),
    HistoryFilled(2),
    warmup_step(2),
    LineSearchFailed(3, "the step vanished"),
    CostGuardTripped(1.234, 0.05, 3),
    PhaseDone(1, "lbfgs_warmup", "the loss has reached a plateau", 3, {}),
    PhaseStarted(2, "gauss_newton"),
    FirstPassStarted(1, 500),
    newton_step(1),
    PhaseDone(2, "gauss_newton", "converged", 1, {}),
    PhaseStarted(3, "denormalization_covariance"),
    PhaseDone(3, "denormalization_covariance", "converged", 0, {}),
)
SKIPPED = (
    PhaseStarted(1, "lbfgs_warmup"),
    FirstPassStarted(1, 500),
    WarmupStarted(),
    WarmStartDetected(0.0081282997, 0.01),
    PhaseDone(1, "lbfgs_warmup", "skipped: the start is near the optimum", 0, {}),
    PhaseStarted(2, "gauss_newton"),
    FirstPassStarted(1, 500),
)
VERBOSE_1 = [
    "Phase 0: Normalization Setup",
    "Phase 1: L-BFGS Warmup",
    "  First step: careful (relative_loss=4.1235e-01)",
    "  L-BFGS iter 1/500: cost=6.195290e+00, grad_norm=4.420000e+01, step=1.000000e-01, time=0.0s",
    "  L-BFGS iter 2/500: cost=6.195290e+00, grad_norm=4.420000e+01, step=1.000000e-01, time=0.0s",
    "  Line search failed at iteration 3: the step vanished",
    "  Cost guard tripped at iteration 3: cost is 1.234 times the best (limit 1.05); back to the best point",
    "  the loss has reached a plateau (3 iterations)",
    "Phase 2: Streaming Gauss-Newton",
    "  Computing initial JTJ (1 chunks, 500 points)...",
    "  GN iter 1/100: cost=4.789448e+00, grad_norm=4.423933e+01, reduction=1.405842e+00, Δ=1.0000, time=0.0s",
    "  converged (1 iterations)",
    "Phase 3: Denormalization and Covariance",
]


STARTS = (
    StartsDrawn(np.ones((4, 3)), 2),
    RoundPlayed(1, 2, 2, np.array([3.0, np.inf, 1.5, 2.0]), (0, 2)),
    RoundPlayed(2, 2, 2, np.array([2.5, np.inf, 1.25, 2.0]), (2,)),
    StartFitted(1, 2, 2, 4.789448, 1, "converged", THETA),
    StartFitted(2, 2, 0, 12.5, 30, "a short fit has no more iterations", THETA),
    StartChosen(2, 6.19529),
)
STARTS_TOLD = [
    "Multi-start: 4 candidates, the first is p0",
    "  Round 1/2: 2 candidates left, best is 2 with a mean loss of 1.500000e+00",
    "  Round 2/2: 1 candidate left, best is 2 with a mean loss of 1.250000e+00",
    "  Short fit 1/2 from candidate 2: cost=4.789448e+00, 1 iteration",
    "  Short fit 2/2 from candidate 0: cost=1.250000e+01, 30 iterations",
    "  The fit begins from candidate 2 (cost at p0: 6.195290e+00)",
]


class Unreadable(Event):
    """An event that must not be looked at."""

    __slots__ = ()

    def __getattribute__(self, name):
        raise AssertionError(name)


@pytest.fixture
def told(caplog):
    """Plays events to a new log and returns the lines that reach the application's logging."""

    def play(events, verbose, every=1):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="nlsq_nb"):
            observe = ProgressLog(every, verbose)
            for event in events:
                observe(event)
        assert {(r.name, r.levelno) for r in caplog.records} <= {("nlsq_nb.fit", logging.INFO)}
        return [re.sub(r"time=0\.\ds", "time=0.0s", record.getMessage()) for record in caplog.records]

    return play


def test_layout_at_verbose_1(told):
    assert told(WARMED, 1) == VERBOSE_1


def test_verbose_2_adds_routine_events_and_parameters(told):
    expected = list(VERBOSE_1)
    expected.insert(11, PARAMS)
    expected.insert(5, PARAMS)
    expected.insert(4, "  L-BFGS history full at iteration 2")
    expected.insert(4, PARAMS)
    expected.insert(3, "  Step clipped: length 3.2500e+00 shortened to 1.0000e-01")
    assert told(WARMED, 2) == expected


def test_several_starts_are_told(told):
    assert told(STARTS, 1) == STARTS_TOLD
    assert told(STARTS, 1, every=100) == STARTS_TOLD
    assert told(STARTS, 2) == [*STARTS_TOLD[:4], PARAMS, STARTS_TOLD[4], PARAMS, STARTS_TOLD[5]]


def test_verbose_0_is_silent_everywhere(told, capfd):
    assert told((*WARMED, *SKIPPED, *STARTS, PASS), 0) == []
    assert capfd.readouterr() == ("", "")


def test_verbose_0_looks_at_nothing():
    ProgressLog(1, 0)(Unreadable())
    with pytest.raises(AssertionError):
        ProgressLog(1, 1)(Unreadable())


def test_disabled_logging_costs_no_formatting(capfd):
    logging.disable(logging.INFO)
    try:
        ProgressLog(1, 2)(Unreadable())
    finally:
        logging.disable(logging.NOTSET)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("verbose", [1, 2])
def test_a_skipped_warmup_has_one_line(told, verbose):
    assert told(SKIPPED, verbose) == [
        "Phase 1: Skipping L-BFGS warmup - warm start detected (relative_loss=8.1283e-03)",
        "Phase 2: Streaming Gauss-Newton",
        "  Computing initial JTJ (1 chunks, 500 points)...",
    ]


def test_a_warmup_without_steps_has_its_title(told):
    events = (PhaseStarted(1, "lbfgs_warmup"), WarmupStarted(), PhaseDone(1, "lbfgs_warmup", "not asked for", 0, {}))
    assert told(events, 1) == ["Phase 1: L-BFGS Warmup", "  not asked for (0 iterations)"]


def test_log_frequency(told):
    lines = told([*map(warmup_step, range(1, 10)), *map(newton_step, range(1, 10))], 2, every=4)
    assert [re.findall(r"(?:L-BFGS|GN) iter \d+", line) for line in lines] == [
        ["L-BFGS iter 4"], [], ["L-BFGS iter 8"], [], ["GN iter 4"], [], ["GN iter 8"], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (PASS, "  pass: 12,345,678 of 100,000,000 rows (12%), 3.2e+07 rows/s, 2.7 s left"),
        (PassProgress(999, 1000, 3.0), "  pass: 999 of 1,000 rows (99%), 3.3e+02 rows/s, 0.0 s left"),
        (PassProgress(10, 1000, 10.0), "  pass: 10 of 1,000 rows (1%), 1.0e+00 rows/s, 16.5 min left"),
        (PassProgress(10, 20_000, 10.0), "  pass: 10 of 20,000 rows (0%), 1.0e+00 rows/s, 5.6 h left"),
        (PassProgress(0, 1000, 1.5), "  pass: 0 of 1,000 rows (0%), 0.0e+00 rows/s"),
        (PassProgress(5, 1000, 0.0), "  pass: 5 of 1,000 rows (0%), 0.0e+00 rows/s"),
    ],
)
def test_pass_progress(told, event, line):
    assert told([event], 1) == [line]


def test_a_long_first_pass_does_not_announce_a_warmup_that_is_skipped(told):
    lines = told([SKIPPED[0], PASS, *SKIPPED[2:4]], 1)
    assert [line[:17] for line in lines] == ["  pass: 12,345,67", "Phase 1: Skipping"]


def test_without_application_logging_the_lines_go_to_stderr_once(capfd):
    observe = ProgressLog(1, 1)
    for event in WARMED:
        observe(event)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.sub(r"time=0\.\ds", "time=0.0s", err).splitlines() == VERBOSE_1


def test_an_application_that_logs_warnings_only_is_left_alone(capfd, caplog):
    logger = logging.getLogger("nlsq_nb")
    before = (logger.level, list(logger.handlers), logger.propagate)
    ProgressLog(1, 1)(SKIPPED[-2])
    assert (logger.level, list(logger.handlers), logger.propagate) == before
    assert caplog.records == []  # the root logger has caplog's handler, at level WARNING
    assert capfd.readouterr().err == "Phase 2: Streaming Gauss-Newton\n"


def test_fits_in_overlapping_threads_keep_their_verbosity(capfd):
    begun, ended = threading.Barrier(3), threading.Barrier(3)

    def play(name, verbose, rounds):
        observe = ProgressLog(1, verbose)
        begun.wait(10)
        for _ in range(rounds):
            observe(LineSearchFailed(1, name))
        ended.wait(10)
        observe(LineSearchFailed(2, name))

    cases = (("loud", 1, 50), ("louder", 2, 30), ("silent", 0, 40))
    threads = [threading.Thread(target=play, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    counts = {name: sum(line.endswith(f": {name}") for line in lines) for name, _, _ in cases}
    assert counts == {"loud": 51, "louder": 31, "silent": 0}
    assert len(lines) == 82


def test_callback_hears_one_rising_count_across_phases():
    heard = []
    observe = CallbackObserver(lambda params, loss, k: heard.append((params.tolist(), loss, k)), 2)
    for event in (PhaseStarted(1, ""), warmup_step(1), StepClipped(1.0, 0.1), warmup_step(2), warmup_step(3)):
        observe(event)
    for event in (PhaseStarted(2, ""), newton_step(1), newton_step(2)):
        observe(event)
    theta = list(THETA)
    assert heard == [(theta, 6.19529, 1), (theta, 6.19529, 3), (theta, 4.789448, 5)]


def test_callback_hears_of_every_start_in_the_same_count():
    heard = []
    observe = CallbackObserver(lambda params, loss, k: heard.append((params.tolist(), loss, k)), 2)
    for event in (*STARTS, warmup_step(1), warmup_step(2), newton_step(1)):
        observe(event)
    theta = list(THETA)
    assert heard == [(theta, 4.789448, 1), (theta, 12.5, 2), (theta, 6.19529, 3), (theta, 4.789448, 5)]


@pytest.mark.parametrize("step", [warmup_step(1), newton_step(1), STARTS[3]])
@pytest.mark.parametrize("answer", [True, np.True_])
def test_callback_that_returns_true_ends_the_fit(step, answer):
    with pytest.raises(StopFit):
        CallbackObserver(lambda *_: answer, 1)(step)


@pytest.mark.parametrize("answer", [None, False, 1, "stop", np.ones(3)])
def test_callback_that_returns_anything_else_goes_on(answer):
    CallbackObserver(lambda *_: answer, 1)(newton_step(1))


def test_callback_owns_its_parameters():
    kept = []
    observe = CallbackObserver(lambda params, *_: kept.append(params), 1)
    observe(warmup_step(1))
    kept[0][:] = 0.0
    observe(warmup_step(2))
    assert kept[1].tolist() == list(THETA)
    assert kept[1].dtype == np.float64


@pytest.mark.parametrize("kind", ["iterator", "function", "file"])
def test_every_reading_of_a_stream_is_told(caplog, kind, monkeypatch, tmp_path):
    """While rows are counted, or kept in a file, and in passes that come before the first phase."""
    monkeypatch.setattr("nlsq_nb.sources.rows.PERIOD", 0.0)
    monkeypatch.setattr("nlsq_nb.sources.retrying.PERIOD", 0.0)
    x = np.linspace(0.0, 4.0, 600_000)
    y = 3.0 * np.exp(-1.5 * x) + 0.5 + 0.1 * np.sin(997.0 * x)

    def batches():
        yield from zip(np.array_split(x, 3), np.array_split(y, 3), strict=True)

    if kind == "file":
        with h5py.File(tmp_path / "rows.h5", "w") as file:
            file["x"], file["y"] = x, y
    data = {"iterator": batches(), "function": batches, "file": HDF5Source(tmp_path / "rows.h5")}[kind]
    options = {"p0": [1, 1, 1], "verbose": 1, "chunk_size": 200_000, "loop_strategy": "loop"}
    with caplog.at_level(logging.INFO, logger="nlsq_nb"):
        assert curve_fit("a*exp(-b*x) + c", data, **options).success
    lines = [record.getMessage() for record in caplog.records]
    begin = next(k for k, line in enumerate(lines) if line.startswith("Phase 1"))
    assert (kind != "file") == any(re.match(r"  reading: \d+00,000 rows, ", line) for line in lines)
    assert any(line.startswith("  pass: ") for line in lines[:begin])
    assert not any(line.startswith("  reading") for line in lines[begin:])


def test_a_finished_fit_tells_nothing_more(caplog, monkeypatch):
    x = np.linspace(0.0, 4.0, 300_000)
    y = 3.0 * np.exp(-1.5 * x) + 0.5 + 0.1 * np.sin(997.0 * x)
    with caplog.at_level(logging.INFO, logger="nlsq_nb"):
        result = curve_fit("a*exp(-b*x) + c", lambda: iter([(x, y)]), p0=[1, 1, 1], verbose=1)
        assert caplog.records
        caplog.clear()
        monkeypatch.setattr("nlsq_nb.sources.retrying.PERIOD", 0.0)
        assert sum(len(part) for part in result.residual_chunks()) == len(x)
        result.profile("b")
        assert not caplog.records
