"""Checkpoints under damage, power cuts, failing disks and malice."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
import warnings

import h5py
import numpy as np
import pytest

from nlsq_nb import curve_fit
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import CheckpointError
from nlsq_nb.observe import checkpoint_image
from nlsq_nb.observe.checkpoint_file import read, write
from nlsq_nb.observe.checkpoint_tree import from_tree, pack, to_tree, unpack
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState, StopReason

CLASSES = (FitState, NormalSums, ParameterNormalizer, StopReason)
FINGERPRINT = {"data": "aa", "model": "bb", "config": "cc"}
NAME = "checkpoint_phase2_iter1.h5"


def state(scale=1.0):
    bounds = np.full(3, -np.inf), np.full(3, np.inf)
    return setup(np.array([1.0, 2.0, 3.0]) * scale, bounds, ("a", "b", "c"), ("a",), 5.0, "auto")


def save(folder, scale=1.0, iteration=1):
    tree = to_tree(state(scale), CLASSES)
    shown = {"current_phase": 2, "normalized_params": np.ones(3), "stop": "FLAT"}
    return write(folder, 2, iteration, tree, FINGERPRINT, {"passes": 3}, shown)


def scale_of(where):
    return float(from_tree(read(where, FINGERPRINT).tree, CLASSES).theta[0])


# --- damage ---


@pytest.mark.parametrize("damages", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_and_every_truncation_is_found(tmp_path, damages):
    # The SHA-256 is over the whole file, unused bytes and the part for people included: nothing may pass.
    save(tmp_path, 1.0)
    path = save(tmp_path, 2.0)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(damages):
        data = bytearray(whole)
        if rng.random() < 0.8:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            del data[rng.integers(len(data)) :]
        path.write_bytes(data)
        loaded = read(path, FINGERPRINT)  # the damaged file is noticed, and .prev stands in
        assert loaded.path.name == NAME + ".prev"
    assert scale_of(path) == 1.0
    path.write_bytes(whole)
    assert scale_of(path) == 2.0


def test_every_bit_of_the_first_line_counts(tmp_path):
    whole = save(tmp_path).read_bytes()
    for bit in range(8 * (whole.index(b"\n") + 2)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            checkpoint_image.open_image(bytes(data))
    checkpoint_image.open_image(whole)


def test_overwritten_and_swapped_sectors_are_found(tmp_path):
    whole = save(tmp_path).read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(200):
        data = bytearray(whole)
        one, other = 512 * rng.choice(len(data) // 512, 2, replace=False)
        data[one : one + 512], data[other : other + 512] = data[other : other + 512], data[one : one + 512]
        if data != whole:
            with pytest.raises(CheckpointError):
                checkpoint_image.open_image(bytes(data))


# --- power cuts: one process forks children that write and are killed ---

KILLED = textwrap.dedent("""
    import json, os, random, signal, sys, time
    import numpy as np
    from pathlib import Path
    from nlsq_nb.observe.checkpoint_file import read, write
    from nlsq_nb.observe.checkpoint_tree import from_tree, to_tree

    def fill(folder, first, on_call=lambda: None, limit=10**9):
        # twice each, so that .prev is in play; the content says which one it is
        for k in range(2 * first, 2 * limit):
            write(folder, 2, k // 2, to_tree(np.full(2000, float(k))), {"data": "x"}, {})

    def check(folder):
        loaded = read(folder, {"data": "x"})
        values = from_tree(loaded.tree)
        assert values.shape == (2000,)
        assert (values == values[0]).all()
        assert loaded.iteration == values[0] // 2
        return float(values[0])

    def child(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        return pid
""")
RANDOM_MOMENTS = KILLED + textwrap.dedent("""
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    random.seed(rounds)
    fill(folder, 0, limit=1)
    seen = [check(folder)]
    for _ in range(rounds):
        pid = child(lambda: fill(folder, int(seen[-1]) // 2 + 1))
        time.sleep(random.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        seen.append(check(folder))
    files = [path.name for path in folder.iterdir()]
    sys.stdout.write(json.dumps({"seen": seen, "files": files}))
""")
EVERY_CALL = KILLED + textwrap.dedent("""
    folder, deaths = Path(sys.argv[1]), 0

    def dying(n):
        count = 0
        def wrap(call):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return wrapped
        real = os.write
        os.write = lambda fd, data: real(fd, data[:5000])  # in several pieces
        for name in ("open", "write", "fsync", "close", "replace", "link", "unlink", "mkdir"):
            setattr(os, name, wrap(getattr(os, name)))

    fill(folder, 0, limit=4)
    last = check(folder)
    for n in range(1, 1000):
        def work():
            dying(n)
            write(folder, 2, 3, to_tree(np.full(2000, 7.0)), {"data": "x"}, {})  # over its like
            write(folder, 2, 4, to_tree(np.full(2000, 8.0)), {"data": "x"}, {})  # and a new one
            os._exit(0)
        status = os.waitpid(child(work), 0)[1]
        assert status in (0, signal.SIGKILL)
        assert check(folder) in (7.0, 8.0)
        # also when a folder is not what one resumes from
        assert from_tree(read(folder / "checkpoint_phase2_iter3.h5", {"data": "x"}).tree)[0] == 7.0
        if status == 0:
            break
        deaths += 1
    sys.stdout.write(json.dumps({"deaths": deaths}))
""")


def run_script(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kill_at_random_moments(folder, rounds):
    told = run_script(RANDOM_MOMENTS, folder, rounds)
    assert told["seen"] == sorted(told["seen"])  # nothing that was there is lost
    assert len(set(told["seen"])) > rounds // 4  # and the children did write
    checkpoints = [name for name in told["files"] if name.endswith(".h5")]
    assert 3 <= len(checkpoints) <= 4


def test_killed_at_random_moments(tmp_path):
    kill_at_random_moments(tmp_path, 30)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    kill_at_random_moments(tmp_path, 300)


def test_killed_before_every_system_call(tmp_path):
    assert run_script(EVERY_CALL, tmp_path)["deaths"] > 20


# --- failing disks ---

# what pathlib lists a folder with
LISTING = "scandir" if sys.version_info >= (3, 13) else "listdir"
CALLS = ("open", "write", "fsync", "close", "fstat", "replace", "link", "unlink", "mkdir", LISTING)


class FailsOnce:
    """Lets the n-th of the calls that it is laid over fail."""

    def __init__(self, n, calls):
        self.n, self.calls, self.count = n, calls, 0

    def over(self, patch):
        for name in self.calls:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, call):
        def replacement(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                if name == "close":  # the descriptor is gone all the same
                    call(*args, **kwargs)
                raise OSError(28, f"No space left on device, {name}")
            return call(*args, **kwargs)

        return replacement


@pytest.mark.parametrize("calls", [CALLS, *((name,) for name in CALLS)], ids="+".join)
def test_the_nth_call_fails(tmp_path, monkeypatch, calls):
    for k in (1, 2, 3):
        save(tmp_path, float(k), iteration=k)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None  # noqa: PTH112, PTH208
    refused = 0
    for n in range(1, 1000):
        faults = [FailsOnce(n, calls) for _ in range(2)]
        for fault, iteration in zip(faults, (3, 4), strict=True):
            before, now = scale_of(tmp_path), 10.0 * n + iteration
            with monkeypatch.context() as patch:
                fault.over(patch)
                try:
                    save(tmp_path, now, iteration=iteration)
                    allowed = {now}
                except CheckpointError as error:
                    assert "No space left" in str(error)  # noqa: PT017 - it may also succeed
                    refused += 1
                    allowed = {before, now}  # now: renamed, but not known to survive a power cut
            assert scale_of(tmp_path) in allowed
            assert not list(tmp_path.glob(".*"))
        if all(fault.count < n for fault in faults):
            break
    assert 1 < n < 999
    assert refused or calls in (("link",), ("mkdir",))  # full recovery
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert len(list(tmp_path.glob("*.h5"))) == 3


@pytest.mark.parametrize(("fault", "lasts"), [(OSError(28, "No space left on device"), 10**9), (MemoryError(), 1)])
def test_a_fit_does_not_end_for_want_of_room(tmp_path, monkeypatch, fault, lasts):
    x = np.linspace(0.0, 10.0, 500)
    y = 5.0 * np.exp(-0.5 * x) + 1.0 + 0.1 * np.sin(37.0 * x)
    options = {"p0": [1.0, 0.1, 5.0], "separable": False, "checkpoint_frequency": 1, "backend": "reference"}
    options |= {"max_warmup_iterations": 12, "warmup_iterations": 12}
    whole = curve_fit("a*exp(-b*x) + c", x, y, checkpoint_dir=tmp_path / "whole", **options)
    calls, real = itertools.count(), os.write

    def write_some(descriptor, data):
        if 5 <= next(calls) < 5 + lasts:
            raise fault
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        found = curve_fit("a*exp(-b*x) + c", x, y, checkpoint_dir=tmp_path / "part", **options)
    said = [note for note in found.notes if "last checkpoint was not written" in note]
    assert len(said) == (lasts > 1)
    assert not list((tmp_path / "part").glob(".*"))
    again = curve_fit("a*exp(-b*x) + c", x, y, resume_from_checkpoint=tmp_path / "part", **options)
    for one in (found, again):
        assert one.popt.tobytes() == whole.popt.tobytes()
        assert one.pcov.tobytes() == whole.pcov.tobytes()
        assert (one.sse, one.nfev) == (whole.sse, whole.nfev)


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    whole = save(tmp_path / "a").read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    assert save(tmp_path / "b").read_bytes() == whole


def test_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    for scale in (1.0, 2.0):
        path = save(tmp_path, scale)
    assert scale_of(path) == 2.0
    assert scale_of(tmp_path / (NAME + ".prev")) == 1.0


def test_interrupted_while_writing(tmp_path, monkeypatch):
    save(tmp_path, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2.0)
    assert scale_of(tmp_path) == 1.0
    assert os.listdir(tmp_path) == [NAME]  # noqa: PTH208


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(tmp_path / NAME, FINGERPRINT)
    (tmp_path / (NAME + ".prev")).mkdir()
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        read(tmp_path, FINGERPRINT)


def test_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_image, "LARGEST", 1000)
    with pytest.raises(CheckpointError, match="too large"):
        checkpoint_image.open_image(bytes(1001))
    with pytest.raises(CheckpointError, match="too large"):
        save(tmp_path)


# --- malice: files whose SHA-256 is right ---


def seal(data, start, length, serial=1):
    """The bytes with a line that vouches for them."""
    image = bytearray(512) + bytearray(data)
    line = f"nlsq_nb checkpoint 3.0 serial {serial} state {start}+{length} of {len(image)} bytes sha256 {'0' * 64}\n"
    image[: len(line)] = line.encode()
    at = len(line) - 65
    image[at : at + 64] = checkpoint_image._digest(image, at).encode()
    return bytes(image)


def forge(document):
    return seal(document, 512, len(document))


def text(value):
    """A document of this JSON text without arrays."""
    data = value.encode()
    return len(data).to_bytes(8, "little") + data


def document(state="null", phase="2", iteration="1", fingerprint='{"dict":[]}', extra='{"dict":[]}'):
    parts = {"phase": phase, "iteration": iteration, "fingerprint": fingerprint, "extra": extra, "state": state}
    return '{"dict":[' + ",".join(f'["{key}",{value}]' for key, value in parts.items()) + "]}"


def restored(data):
    return from_tree(checkpoint_image.open_image(data).state, CLASSES)


def test_a_forgery_that_is_no_forgery_is_read():
    assert restored(forge(text(document("[1,2]")))) == [1, 2]


@pytest.mark.parametrize(
    "data",
    [
        seal(b"", 512, 0),
        seal(b"x" * 100, 10**11, 50),
        seal(b"x" * 100, 0, 10**11),
        forge(b"\xff" * 8),
        forge((10**9).to_bytes(8, "little")),
        forge(text("[" * 200_000)),
        forge(text("[" * 200_000 + "]" * 200_000)),
        forge(text('{"tuple":' * 100_000)),
        forge(text("null")),
        forge(text("[]")),
        forge(text("9" * 100_000)),
        forge(text("1.5")),
        forge(text("NaN")),
        forge(text('{"dict":[]}')),
        forge(text('{"dict":[1]}')),
        forge(text('{"dict":[[[],1]]}')),
        forge(text(document(phase='"2"'))),
        forge(text(document(phase="true"))),
        forge(text(document(fingerprint="[]"))),
        forge(text(document(extra='{"class":["FitState",[]]}'))),
        forge(text(document()) + b"rest"),
        forge(text(document('{"array":["<f8",[1000000000],"C"]}'))),
        forge(text(document('{"array":["<f8",[0,1000000000000000000000],"C"]}'))),
        forge(text(document('{"array":["<f8",[-1],"C"]}'))),
        forge(text(document('{"array":["<f8",[true],"C"]}')) + bytes(8)),
        forge(text(document('{"array":["<f8",[1],"K"]}')) + bytes(8)),
        forge(text(document('{"array":["<f8",[' + ",".join("1" * 100) + '],"C"]}')) + bytes(8)),
        forge(text(document('{"array":["|O",[1],"C"]}')) + bytes(8)),
        forge(text(document('{"array":["<U2",[1],"C"]}')) + bytes(8)),
        forge(text(document('{"array":[["<f8"],[1],"C"]}')) + bytes(8)),
        forge(text(document('{"array":["|b1",[2],"C"]}')) + b"\x00\x02"),
        forge(text(document('{"array":1}'))),
        forge(text(document('{"array":["|V8",[1],"C"]}')) + bytes(8)),
    ],
)
def test_malformed_documents_are_refused(data):
    with pytest.raises(CheckpointError):
        checkpoint_image.open_image(data)


@pytest.mark.parametrize(
    "node",
    [
        "{}",
        '{"tuple":[],"dict":[]}',
        '{"tuple":1}',
        '{"dict":[[1]]}',
        '{"dict":[[[],1]]}',
        '{"unknown":1}',
        '{"float":"00"}',
        '{"float":1}',
        '{"float":"zz"}',
        '{"scalar":1}',
        '{"enum":["StopReason","__class__"]}',
        '{"enum":["StopReason",1]}',
        '{"enum":["NormalSums","zero"]}',
        '{"enum":"StopReason"}',
        '{"class":["StopReason",[]]}',
        '{"class":["object",[]]}',
        '{"class":["Popen",[["args","ls"]]]}',
        '{"class":["FitState",[]]}',
        '{"class":["FitState",[["theta",1]]]}',
        '{"class":["NormalSums",[["__class__",1]]]}',
        '{"class":["ParameterNormalizer",[["normalize",1]]]}',
        '{"class":["ParameterNormalizer",[["__class__",1]]]}',
        '{"class":["ParameterNormalizer",[["a b",1]]]}',
        '{"class":["ParameterNormalizer",[[1,1]]]}',
        '{"class":[[],[]]}',
        "[" * 100 + "]" * 100,
        '{"tuple":[' * 100 + "]}" * 100,
    ],
)
def test_malformed_states_are_refused(node):
    data = forge(text(document(node)))
    with pytest.raises(CheckpointError):
        restored(data)


def test_mutated_documents_with_a_right_hash_are_read_or_refused():
    parts = {"phase": 2, "iteration": 1, "fingerprint": to_tree(FINGERPRINT), "extra": to_tree({"k": (1.5, [None])})}
    whole = pack({"dict": [[key, value] for key, value in parts.items()] + [["state", to_tree(state(), CLASSES)]]})
    rng = np.random.default_rng(3)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3000):
            data = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                at = rng.integers(len(data))
                match rng.integers(4):
                    case 0:
                        data[at] ^= 1 << rng.integers(8)
                    case 1:
                        data[at] = rng.choice(list(b'[]{}",:0123456789<>|bfiuc'))
                    case 2:
                        del data[at : at + rng.integers(1, 20)]
                    case 3:
                        data[at:at] = data[rng.integers(len(data)) :][: rng.integers(1, 40)]
            try:
                restored(forge(bytes(data)))
            except CheckpointError:
                refused += 1
    assert 1000 < refused < 3000


def test_nothing_in_the_hdf5_part_is_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 100)
    content = text(document("[1,2]"))
    path = tmp_path / NAME
    with h5py.File(path, "w", userblock_size=512) as file:
        file["hidden"] = np.frombuffer(content, np.uint8)
        start = file["hidden"].id.get_offset()
        file["state"] = h5py.ExternalLink("secret", "/")
        file.create_dataset("fingerprint", (600,), np.uint8, external=[(str(secret), 0, 600)])
        layout = h5py.VirtualLayout((10**12,), np.uint8)
        layout[:] = h5py.VirtualSource(str(secret), "x", (10**12,))
        file.create_virtual_dataset("phase_state", layout)
        file["more"] = h5py.SoftLink("/state")
    path.write_bytes(seal(path.read_bytes()[512:], start, len(content)))
    secret.unlink()
    assert from_tree(read(path, {}).tree) == [1, 2]


def test_a_serial_number_without_successor_does_not_hide_what_follows(tmp_path):
    (tmp_path / "checkpoint_phase9_iter9.h5").write_bytes(seal(b"", 512, 0, serial=10**18 - 1))
    for scale in (1.0, 2.0):
        save(tmp_path, scale)
        assert scale_of(tmp_path) == scale


def test_large_arrays_take_no_more_memory_than_their_bytes():
    array = np.zeros(1000)
    back = unpack(pack(to_tree([array, array])))
    assert sum(a.nbytes for a in back) == 2 * array.nbytes
    assert back[0].base is None


CHUNKS = {"chunk_size": 4096, "loop_strategy": "loop"}


@pytest.mark.parametrize("how", [CHUNKS, {"gc_chunk_interval": 3}, "file", "batches"])
def test_a_fit_goes_on_from_the_same_rows_however_they_are_read(tmp_path, how):
    """On a node with less memory, or from another source: its bits do not depend on that."""
    x = np.linspace(0.0, 4.0, 50_000)
    y = 3.0 * np.exp(-1.5 * x) + 0.5 + 0.1 * np.sin(997.0 * x)
    options = {"p0": [1, 1, 1], "callback_frequency": 1, "callback": lambda *_: None}
    model, folder = "a*exp(-b*x) + c", tmp_path / "kept"
    whole = curve_fit(model, x, y, checkpoint_dir=folder, checkpoint_frequency=1, **options)
    given, rest = (x, y), how if isinstance(how, dict) else {}
    if how == "file":
        with h5py.File(tmp_path / "rows.h5", "w") as file:
            file["x"], file["y"] = x, y
        given = (tmp_path / "rows.h5",)
    elif how == "batches":
        given = (lambda: zip(np.array_split(x, 7), np.array_split(y, 7), strict=True),)
    first = min(folder.glob("checkpoint_phase*.h5"))
    found = curve_fit(model, *given, resume_from_checkpoint=first, **options, **rest)
    assert found.popt.tobytes() == whole.popt.tobytes()
    assert found.pcov.tobytes() == whole.pcov.tobytes()
    with pytest.raises(CheckpointError, match="other data"):
        curve_fit(model, x, y + 1e-9, resume_from_checkpoint=first, **options)
