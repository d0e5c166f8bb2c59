"""`nlsq-nb fit` reads real files and prints what NumPy and SciPy find too; bad input is one line and exit code 2."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.optimize import curve_fit as scipy_curve_fit

import nlsq_nb
from nlsq_nb.api import curve_fit
from nlsq_nb.cli import main

MISRA = Path(__file__).parents[1] / "data" / "misra1a.csv"
RNG = np.random.default_rng(11)
T = np.linspace(0.0, 4.0, 40)
SIGMA = 0.02 + 0.03 * RNG.random(40)
S = 2.5 * np.exp(-0.9 * T) + SIGMA * RNG.normal(size=40)
DECAY = "a*exp(-b*t)"


def decay(t, a, b):
    return a * np.exp(-b * t)


def expected(y=S, **sigma):
    """SciPy's answer with the exact Jacobian, iterated to the last digits."""

    def jacobian(t, a, b):
        return np.stack([np.exp(-b * t), -a * t * np.exp(-b * t)], axis=1)

    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 0.0, "maxfev": 1000}
    return scipy_curve_fit(decay, T, y, p0=[1, 1], jac=jacobian, **tight, **sigma)


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def fitted(run):
    """Parameters and errors by name, of a fit that converges without a word on stderr."""

    def call(*argv):
        code, out, err = run("fit", *argv, "--json")
        assert (code, err) == (0, "")
        return {name: (p["value"], p["stderr"]) for name, p in json.loads(out)["params"].items()}

    return call


@pytest.fixture
def refused(run):
    def call(*argv):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("nlsq-nb: error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        return err.removeprefix("nlsq-nb: error: ")

    return call


@pytest.fixture
def decay_csv(tmp_path):
    path = tmp_path / "decay.csv"
    np.savetxt(path, np.c_[T, S, SIGMA], delimiter=",", header="t,signal,err", comments="", fmt="%.17g")
    return path


def agree(found, popt, pcov, rtol=1e-7):
    np.testing.assert_allclose([value for value, _ in found.values()], popt, rtol=rtol)
    np.testing.assert_allclose([error for _, error in found.values()], np.sqrt(np.diag(pcov)), rtol=rtol)


def command(*argv, **kwargs):
    """The command in a process of its own."""
    code = "import sys; from nlsq_nb.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(nlsq_nb.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        env={**os.environ, "PYTHONPATH": path, **kwargs.pop("env", {})},
        stdout=kwargs.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        **kwargs,
    )


# -- in a process of its own -----------------------------------------------------------------
def test_process_prints_the_table():
    process = command("fit", MISRA, "b1*(1 - exp(-b2*x))", "--p0", "b1=500,b2=0.0001")
    out, err = process.communicate(timeout=120)
    text = out.decode()
    assert (process.returncode, err) == (0, b"")
    assert "variables x = 'x'; observations 'y'; unweighted" in text
    assert "converged: " in text
    for row in ("b1        238.9 ±       2.7", "b2    0.0005502 ± 0.0000073", "degrees of freedom    12"):
        assert row in text
    assert "SSE                   0.1245513889" in text
    assert "reduced chi²          0.01037928241" in text


def test_process_refuses_in_one_line():
    process = command("fit", MISRA, "__import__('os').system('echo executed')*x + b")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"nlsq-nb: error: column 1: ")
    assert err.count(b"\n") == 1


def test_process_without_unicode():
    process = command("fit", MISRA, "a*x", env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert b"0.1131 +/- 0.0014" in out


def test_broken_pipe():
    read, write = os.pipe()
    os.close(read)
    process = command("fit", MISRA, "a*x", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (2, b"nlsq-nb: error: cannot write the result: Broken pipe\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_interrupt(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = command("fit", pipe, "a*x")
    with pipe.open("wb"):  # opens when the command does, which then waits for the data
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, b"nlsq-nb: error: interrupted\n")


# -- numbers ---------------------------------------------------------------------------------
@pytest.mark.parametrize("start", ["b1=500,b2=0.0001", "b1=250,b2=0.0005", "b2=1e-4"])
def test_misra1a_has_the_certified_values(fitted, start):
    found = fitted(MISRA, "b1*(1 - exp(-b2*x))", "--p0", start)
    assert found["b1"] == pytest.approx((238.94212918, 2.7070075241), rel=1e-8)
    assert found["b2"] == pytest.approx((5.5015643181e-4, 7.2668688436e-6), rel=1e-8)


def test_a_column_that_the_model_names_is_the_variable(fitted, decay_csv):
    agree(fitted(decay_csv, DECAY), *expected())


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("column", ["err", "3", "c3"])
def test_sigma(fitted, decay_csv, column, absolute):
    flag = ["--absolute-sigma"] if absolute else []
    found = fitted(decay_csv, DECAY, "--sigma", column, *flag)
    agree(found, *expected(sigma=SIGMA, absolute_sigma=absolute))


@pytest.mark.parametrize("header", ["", "# taken in 2021\n# by hand\n"])
@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";"])
def test_text_without_header(fitted, tmp_path, header, delimiter):
    path = tmp_path / "d.txt"
    rows = "".join(f"{t!r}{delimiter}{s!r}\n" for t, s in zip(T.tolist(), S.tolist(), strict=True))
    path.write_text(header + rows)
    agree(fitted(path, "a*exp(-b*x)"), *expected())
    agree(fitted(path, "a*exp(-b*x)", "--x", "x", "--y", "y"), *expected())
    agree(fitted(path, "a*x + b", "--x", "2", "--y", "c1"), *np.polyfit(S, T, 1, cov=True))


def test_bounds(fitted, decay_csv):
    found = fitted(decay_csv, "a*exp(-b*t) + c", "--bounds", "a=:10,b=-1:5,c=0.5:0.5", "--p0", "b=2")
    assert found.pop("c") == (0.5, 0.0)
    agree(found, *expected(S - 0.5))


@pytest.mark.parametrize("method", ["auto", "hybrid_streaming", "lm", "trf"])
def test_method(fitted, decay_csv, method):
    agree(fitted(decay_csv, DECAY, "--method", method), *expected())


def test_npz_and_hdf5(fitted, tmp_path):
    np.savez(tmp_path / "d.npz", signal=S, t=T, image=np.ones((3, 3)), other=np.arange(3))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["run/t"], file["run/y"], file["meta/n"] = T, S, np.arange(3)
    agree(fitted(tmp_path / "d.npz", DECAY, "--y", "signal"), *expected())
    agree(fitted(tmp_path / "d.npz", "a*exp(-b*x)", "--x", "t", "--y", "signal"), *expected())
    agree(fitted(tmp_path / "d.h5", DECAY), *expected())
    agree(fitted(tmp_path / "d.h5", "a*exp(-b*x)", "--x", "/run/t", "--y", "y"), *expected())


def test_a_model_that_starts_with_a_minus(run, decay_csv):
    code, out, err = run("fit", decay_csv, "--p0", "b=1", "--json", "--", "-a*exp(-b*t)")
    assert (code, err) == (0, "")
    assert json.loads(out)["params"]["a"]["value"] == pytest.approx(-expected()[0][0], rel=1e-7)


# -- which columns ---------------------------------------------------------------------------
U, V = RNG.normal(size=(2, 30))
W = 2.0 + 3.0 * U - 4.0 * V + 0.1 * RNG.normal(size=30)


@pytest.fixture
def plane(tmp_path):
    """Writer of a file with columns u, v, w under other names."""

    def write(names):
        path = tmp_path / "plane.csv"
        np.savetxt(path, np.c_[U, V, W], delimiter=",", header=names, comments="", fmt="%.17g")
        return path

    return write


@pytest.mark.parametrize(
    ("names", "model", "argv", "chosen"),
    [
        ("u,v,w", "p*u + q*v + r", [], "u = 'u', v = 'v'; observations 'w'"),
        ("u,v,w", "p*x0 + q*x1 + r", ["--x", "u,v"], "x0 = 'u', x1 = 'v'; observations 'w'"),
        ("u,v,w", "p*u + q*x1 + r", ["--x", "u", "--x", "2"], "u = 'u', x1 = 'v'; observations 'w'"),
        ("x,y,z", "p*x + q*y + r", [], "x = 'x', y = 'y'; observations 'z'"),
        ("x,y,z", "p*x + q", [], "x = 'x'; observations 'y'"),
        ("y,x,z", "p*x + q", [], "x = 'x'; observations 'y'"),
        ("y,t,z", "p*x + q", [], "x = 't'; observations 'y'"),
        ("t,s,e", "p*x + q", [], "x = 't'; observations 's'"),
        ("s,e,t", "p*t + q", [], "t = 't'; observations 's'"),
        ("t,sigma,s", "p*t + q", [], "t = 't'; observations 's'; unweighted"),
        ("t,s,e", "p*t + q", ["--y", "e"], "t = 't'; observations 'e'"),
        ("t,s,e", "p*x + q", ["--y", "1"], "x = 's'; observations 't'"),
        ("t,p,q", "p*t + q", ["--p0", "p=1,q=1"], "t = 't'; observations 'p'"),
        ("t,s,e", "t*e + p", [], "t = 't'; observations 's'"),  # e is a number in models
        ("t,s,e", "c", [], "x = 't'; observations 's'"),
        ("1,2,3", "p*x + q", [], "x = 'x'; observations 'y'"),
        ("1,2,3", "p*x + q", ["--x", "3"], "x = 'sigma'; observations 'y'"),
        ("1,2,3", "c1*x + c2", ["--x", "c2"], "x = 'y'; observations 'x'"),
        ("1,2,3", "a*c2 + b", ["--x", "c2", "--y", "c1"], "c2 = 'y'; observations 'x'"),
    ],
)
def test_choice_of_columns(run, plane, names, model, argv, chosen):
    code, out, err = run("fit", plane(names), model, *argv)
    assert (code, err) == (0, "")
    assert chosen in out.splitlines()[0]


def test_two_variables(fitted, plane):
    matrix = np.c_[U, V, np.ones(30)]
    found = fitted(plane("u,v,w"), "p*u + q*v + r")
    popt, sse, *_ = np.linalg.lstsq(matrix, W)
    agree(found, popt, np.linalg.inv(matrix.T @ matrix) * sse / 27)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["p*k + q"], "neither x nor the name of a column occurs"),
        (["p*k + q", "--x", "u"], "neither x nor the name of a column occurs"),
        (["p*u + q", "--x", "u,v"], "neither 'v' nor 'x1' for column 'v'"),
        (["p*u + q*v + r*w"], "no column left for y"),
        (["p*u + q", "--y", "u", "--x", "u"], "'u' is used twice"),
        (["p*u + q", "--sigma", "w", "--y", "w"], "'w' is used twice"),
        (["p*u + q", "--y", "z"], "no column 'z'; it has 3 columns: u, v, w"),
        (["p*u + q", "--x", ""], "no column ''"),
        (["p*u + q", "--sigma", "4"], "no column '4'"),
    ],
)
def test_no_such_choice(refused, plane, argv, message):
    assert message in refused("fit", plane("u,v,w"), *argv)


def test_ambiguous_data_sets(refused, tmp_path):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["one/t"], file["two/t"], file["one/y"], file["two/y"] = T, T, S, S
    assert "both 'one/t' and 'two/t' may be 't'; say which with --x" in refused("fit", tmp_path / "d.h5", DECAY)
    told = refused("fit", tmp_path / "d.h5", DECAY, "--x", "one/t")
    assert "one/y and two/y are all called y; say which with --y" in told


def test_a_link_is_named(refused, tmp_path):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["real"], file["y"], file["t"] = T, S, h5py.SoftLink("/real")
    assert "'t' cannot be used: it is a soft or external link" in refused("fit", tmp_path / "d.h5", DECAY)


# -- output ----------------------------------------------------------------------------------
@pytest.mark.filterwarnings("error")
def test_notes_are_not_warned_again(run, tmp_path):
    (tmp_path / "d.txt").write_text("1 1\n2 2.1\n3 2.9\n")
    code, out, err = run("fit", tmp_path / "d.txt", "(a + b)*x")
    assert (code, err) == (0, "")
    assert out.count("warning: ") == 1
    assert "not determined by the data" in out


@pytest.mark.filterwarnings("error")
def test_not_converged_is_1_with_the_table(run, decay_csv, monkeypatch):
    one_iteration = functools.partial(curve_fit, gauss_newton_max_iterations=1)
    monkeypatch.setattr("nlsq_nb.api.curve_fit", one_iteration)
    code, out, err = run("fit", decay_csv, "a*exp(-b*t) + c*cos(d*t)")
    assert (code, err) == (1, "")
    assert "NOT converged: the iteration limit was reached" in out
    assert "degrees of freedom    36" in out


def test_verbose_logs_on_stderr(run):
    code, out, err = run("fit", MISRA, "b1*(1 - exp(-b2*x))", "--p0", "b2=1e-4", "--verbose", "--json")
    assert code == 0
    assert "GN iter 1/" in err
    assert json.loads(out)["dof"] == 12


def test_version_and_help(run):
    assert run("--version") == (0, f"nlsq-nb {nlsq_nb.__version__}\n", "")
    for argv in (["--help"], ["fit", "--help"]):
        code, out, err = run(*argv)
        assert (code, err) == (0, "")
        assert out.startswith("usage: nlsq-nb")
        assert out.isascii()


# -- bad input -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["guess"], "invalid choice: 'guess'"),
        (["fit"], "DATA, MODEL (see nlsq-nb fit --help)"),
        (["fit", MISRA], "MODEL"),
        (["fit", MISRA, "a*x", "--nonsense"], "--nonsense"),
        (["fit", MISRA, "a*x", "--abs"], "--abs"),
        (["fit", MISRA, "a*x", "--p0", "a"], "--p0: 'a' is not of the form name=value"),
        (["fit", MISRA, "a*x", "--p0", "a=1,"], "--p0: ''"),
        (["fit", MISRA, "a*x", "--p0", "a=one"], "--p0: a: 'one' is not a number"),
        (["fit", MISRA, "a*x", "--p0", "a=nan"], "--p0: a=nan is not finite"),
        (["fit", MISRA, "a*x", "--p0", "a=1,a=2"], "'a' is given twice"),
        (["fit", MISRA, "a*x", "--p0", "q=1"], "p0: 'q' is not a parameter; they are a"),
        (["fit", MISRA, "a*x", "--bounds", "a=1"], "--bounds: a='1' is not lower:upper"),
        (["fit", MISRA, "a*x", "--bounds", "a=1:2:3"], "--bounds: a='1:2:3'"),
        (["fit", MISRA, "a*x", "--bounds", "a=low:"], "--bounds: a: 'low' is not a number"),
        (["fit", MISRA, "a*x", "--bounds", "a=nan:"], "bounds of parameter 'a' are nan"),
        (["fit", MISRA, "a*x", "--bounds", "q=0:"], "bounds: 'q' is not a parameter"),
        (["fit", MISRA, "a*x", "--bounds", "a=2:1"], "a"),
        (["fit", MISRA, "a*x", "--bounds", "a=2:3", "--p0", "a=1"], "a"),
        (["fit", MISRA, "a*x", "--bounds", "a=0:", "--method", "lm"], "unconstrained"),
        (["fit", MISRA, "a*x", "--method", "dogbox"], "dogbox"),
        (["fit", MISRA, "a*x", "--method", "magic"], "magic"),
        (["fit", MISRA, "a*x + log(b)", "--p0", "b=-1"], "not finite"),
    ],
)
def test_bad_arguments(refused, argv, message):
    assert message in refused(*argv)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "a*x +",
        "a^x",
        "x",
        "a.real*x",
        "().__class__*x",
        "9**9**9**9*a*x",
        "(" * 100_000 + "x" + ")" * 100_000,
        "a*x" + "+a*x" * 100_000,
        "lambda: x",
        "a*x\nimport os",
        "a*x\0",
        "a*\ud800*x",
        "f(x)*a",
    ],
)
def test_bad_model(refused, model):
    assert refused("fit", MISRA, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no data"),
        (b"x,y\n", "no row of numbers"),
        (b"x,y\n1,2\n2,3\n3\n", "line 4 has 1 columns where 2 are expected"),
        (b"# c\nx,y\n1,2\n\n2,nan\n3,4\n", "column 'y' is nan in data row 2 (line 5)"),
        (b"x,y\n1,2\ninf,3\n3,4\n", "column 'x' is inf in data row 2 (line 3)"),
        (b"x,y\n1,2\n2,three\n3,4\n", "'y' cannot be used: line 3 has 'three' where a number is expected"),
        (b"x,y\n1,2\n2,\n3,4\n", "'y' cannot be used: line 3 has an empty cell"),
        (b"x,y\none,two\n", "'x' cannot be used: line 2 has 'one' where a number"),
        (b"u,v\none,two\n", "no column left for x; it has 2 columns: u, v; 'u' cannot be used: line 2 has 'one'"),
        (b"1\n2\n3\n", "no column left for y; it has 1 columns: x"),
        (bytes(range(256)) * 20, "neither UTF-8 text nor"),
        (b"PK\x03\x04" + bytes(200), "NPZ"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
        (b"x,y\n1,2\n", "1 data points cannot determine 2 free parameters"),
    ],
)
def test_bad_file(refused, tmp_path, content, message):
    path = tmp_path / "d"
    path.write_bytes(content)
    assert message in refused("fit", path, "a*x + b")


def test_missing_file_directory_and_odd_names(refused, tmp_path):
    assert "No such file" in refused("fit", tmp_path / "none.csv", "a*x")
    assert "directory" in refused("fit", tmp_path, "a*x").lower()
    told = refused("fit", "no\n such\x1b[31m file", "a*x")
    assert "no such\\x1b[31m file" in told
    assert "null byte" in refused("fit", "a\0b", "a*x")


def test_bad_sigma_and_lengths(refused, decay_csv, tmp_path):
    lines = decay_csv.read_text().splitlines()
    lines[3] = "0.2,2.1,0"
    decay_csv.write_text("\n".join(lines))
    told = refused("fit", decay_csv, DECAY, "--sigma", "err")
    assert "sigma 'err' is 0.0 in data row 3 (line 4); it must be positive" in told
    np.savez(tmp_path / "d.npz", t=T, y=S[:-1])
    assert "column 't' has 40 rows, 'y' has 39" in refused("fit", tmp_path / "d.npz", DECAY)


def test_interrupt_in_process(run, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("nlsq_nb.sources.tables.read_table", interrupt)
    assert run("fit", MISRA, "a*x") == (130, "", "nlsq-nb: error: interrupted\n")


def test_the_package_runs_as_the_command():
    words = [sys.executable, "-m", "nlsq_nb", "fit", str(MISRA), "b1*(1 - exp(-b2*x))", "--p0", "b1=500,b2=0.0001"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "238.9" in done.stdout
