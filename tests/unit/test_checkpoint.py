"""Checkpoints keep a state bit for bit, and a resumed fit cannot be told from one that was not interrupted."""

import hashlib
import io
import logging
import shutil
from collections import namedtuple
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import CheckpointError
from nlsq_nb.observe.checkpoint import CheckpointWriter
from nlsq_nb.observe.checkpoint_file import newest, read, write
from nlsq_nb.observe.checkpoint_tree import from_tree, pack, to_tree, unpack
from nlsq_nb.observe.hdf5_layout import Group, lay_out
from nlsq_nb.phases.defense import Defense, StepSizes
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.phases.switching import Switching
from nlsq_nb.phases.warmup import Warmup

CLASSES = (FitState, NormalSums, ParameterNormalizer, StopReason, WarmupPoint, WarmupState, WarmupStop)
FINGERPRINT = {"data": "aa", "model": "bb", "config": "cc", "rows": 50}


class Decay:
    """Objective of a*exp(-b*x) + c over a few points, in plain NumPy."""

    n_params, revision = 3, 0
    x = np.linspace(0.0, 4.0, 50)
    y = 5.0 * np.exp(-1.3 * x) + 1.0 + 0.05 * np.sin(40 * x)
    weight = 50.0
    signal = float(y @ y)
    variance = float(np.var(y))

    def __call__(self, theta, order):
        decay = np.exp(-theta[1] * self.x)
        r = self.y - theta[0] * decay - theta[2]
        j = np.stack([decay, -theta[0] * self.x * decay, np.ones_like(decay)], axis=1)
        return NormalSums.from_arrays(float(r @ r), j.T @ r, j.T @ j, len(r))

    @property
    def sample(self):
        return self


NAMES = ("a", "b", "c")
WARMUP = Warmup(
    Switching(early=20, limit=12, plateau=1e-12, gradient=1e-12, criteria=("max_iter",)),
    Defense(1e-9, adapts_step=True, sizes=StepSizes(1e-6, 1e-5, 1e-3, 1e-3), cost_tolerance=0.05, max_step=0.1),
    variance=Decay.variance,
    memory=4,
    line_search="wolfe",
    gradient_clip=None,
    ridge=1e-12,
)
PHASES = {1: WARMUP, 2: GaussNewton(60, 1e-10, 0.05, 1e-12)}


def start(linear=()):
    bounds = np.full(3, -np.inf), np.array([np.inf, 9.0, np.inf])
    return setup(np.array([1.0, 0.1, 3.0]), bounds, NAMES, linear, Decay.signal, "auto")


def fit(save, state=None, phase=1, linear=()):
    """Both phases; `state`, when given, goes on in `phase`."""
    resumed = state is not None
    state = state or start(linear)
    for number in range(phase, 3):
        step = (lambda s, number=number: save(number, s)) if save else None
        state = run(PHASES[number], state, Decay(), lambda event: None, save=step, resumed=resumed)
        resumed = False
    return state


def same(one, other):
    """Equal in type and in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        order = "F" if one.flags.fnc else "C"
        alike = one.dtype.str == other.dtype.str and one.shape == other.shape and one.flags.fnc == other.flags.fnc
        return alike and one.tobytes(order) == other.tobytes(order)
    if isinstance(one, (float, np.generic)):
        return np.asarray(one).tobytes() == np.asarray(other).tobytes()
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, ParameterNormalizer):
        return same(vars(one), vars(other))
    return one == other


def kept(value, classes=()):
    return from_tree(unpack(pack(to_tree(value, classes))), classes)


def save(folder, iteration, state=0.5, phase=2, fingerprint=FINGERPRINT, extra=None):
    return write(folder, phase, iteration, to_tree(state, CLASSES), fingerprint, extra or {})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- values ---


def test_states_of_a_real_fit_survive_bit_for_bit():
    states = [start()]
    fit(lambda _, state: states.append(state))
    assert any(state.warmup and state.warmup.pairs for state in states)
    assert any(state.scale is not None for state in states)
    for state in states:
        assert same(state, kept(state, CLASSES))


def test_cached_sums_are_not_kept_and_come_back():
    state = fit(None)
    back = kept(state, CLASSES)
    assert not set(vars(back.sums)) - {f.name for f in fields(NormalSums)}
    assert same(back.sums.jtj, state.sums.jtj)
    assert back.stop is state.stop


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.sampled_from(StopReason),
    st.sampled_from([np.float64(-0.0), np.float32("nan"), np.bool_(1), np.int64(-1), np.complex128(1j)]),
)
arrays = st.one_of(
    hnp.arrays(
        st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(),
                  hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.complex_number_dtypes(sizes=(64, 128))),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    hnp.arrays(np.float64, (3, 2)).map(np.asfortranarray),
    hnp.arrays(np.float64, (6,)).map(lambda a: a[::2].copy()),
)  # fmt: skip
trees = st.recursive(
    scalars | arrays,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.sampled_from(["array", "float", "dict"])), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
@settings(deadline=None, max_examples=60)
def test_values_survive_bit_for_bit(value):
    assert same(value, kept(value, (StopReason,)))


@given(st.integers(0, 2**64 - 1))
def test_every_float_survives(bits):
    value = np.array([bits], np.uint64).view(np.float64)
    assert same(float(value[0]), kept(float(value[0])))
    assert same(value, kept(value))


def test_a_strided_array_keeps_its_values():
    array = np.arange(12.0).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(kept(array), array)
    assert kept(array).flags.writeable


Pair = namedtuple("Pair", "x y")  # noqa: PYI024


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Box:
    inside: object


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, r"state\.a\.1: a object"),
        (Box({1, 2}), r"state\.inside: a set"),
        (Box(np.array(["text"])), r"state\.inside: a ndarray"),
        (np.array([None]), "a ndarray"),
        (np.ma.masked_array([1.0]), "a MaskedArray"),
        ({1: 2}, "a dict"),
        (Pair(1, 2), "a Pair"),
        (Colour.RED, "a Colour"),
        (b"bytes", "a bytes"),
        (np.longdouble(1), "a longdouble"),
        (start(), "a FitState"),
    ],
)
def test_other_values_are_refused_with_their_place(value, where):
    with pytest.raises(CheckpointError, match=where):
        to_tree(value, (Box,))


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(CheckpointError, match="nested"):
        to_tree(value)


def test_only_allowed_classes_are_made():
    with pytest.raises(CheckpointError, match="'FitState'"):
        from_tree(to_tree(start(), CLASSES), CLASSES[1:])
    with pytest.raises(CheckpointError, match="'StopReason'"):
        from_tree(to_tree(StopReason.FLAT, CLASSES))


def test_a_class_with_other_fields_is_named():
    tree = {"class": ["Box", [["outside", 1]]]}
    with pytest.raises(CheckpointError, match=r"saved Box .* inside, outside"):
        from_tree(tree, (Box,))


# --- files ---


def test_a_file_is_readable_by_people(tmp_path):
    writer = CheckpointWriter(tmp_path, 1, FINGERPRINT, CLASSES)
    state = replace(fit(None), iteration=12)
    writer(2, state, {"passes": 7})
    with h5py.File(tmp_path / "checkpoint_phase2_iter12.h5") as file:
        assert file.attrs["version"] == "3.0"
        assert file.attrs["sha256"] == hashlib.sha256(file["state"][:].tobytes()).hexdigest()
        assert dict(file["fingerprint"].attrs) == FINGERPRINT
        shown = file["phase_state"]
        assert shown["current_phase"][()] == 2
        np.testing.assert_array_equal(shown["normalized_params"], state.normalizer.normalize(state.theta))
        np.testing.assert_array_equal(shown["theta"], state.theta)
        assert shown["sse"][()] == state.sums.sse
        assert shown["stop"].asstr()[()] == state.stop.name
    loaded = read(tmp_path, FINGERPRINT)
    assert (loaded.phase, loaded.iteration, loaded.extra) == (2, 12, {"passes": 7})
    assert same(from_tree(loaded.tree, CLASSES), state)


def values():
    """A value of every kind that a file shows, by name."""
    shapes = ((), (1,), (0,), (3, 2), (2, 1, 4))
    some = {
        f"{kind}{'x'.join(map(str, shape))}": np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
        for kind in ("f4", "f8", ">f8", "i1", "i4", ">i8", "u2", "u8")
        for shape in shapes
    }
    odd = {"nan": np.array([np.nan, -np.inf, -0.0, 5e-324]), "fortran": np.arange(6.0).reshape(2, 3).T, "int": -(2**63)}
    return some | odd | {"bool": True, "float": 0.1, "ü" * 100: "ß", "empty": "", "long": "ab" * 5000}


def test_the_hdf5_library_reads_what_is_laid_out(tmp_path):
    known, said = values(), {"text": "ü", "none": "", "number": -7}
    image, places = lay_out(Group({"inner": Group(known, said), "last": np.arange(100.0)}, {"a": "b"}), 1024)
    (tmp_path / "file.h5").write_bytes(image)
    with h5py.File(tmp_path / "file.h5", "r+") as file:
        assert file.userblock_size == 1024
        found = file["inner"]
        assert dict(found.attrs) == said
        assert set(found) == set(known)
        for name, value in known.items():
            if isinstance(value, str):
                assert found[name].asstr()[()] == value
                continue
            back, given = np.asarray(found[name][()]), np.asarray(value)
            assert (back.shape, back.dtype.itemsize) == (given.shape, given.dtype.itemsize)
            assert back.tobytes() == given.astype(back.dtype).tobytes()
        assert file["last"].id.get_offset() == places["last"]
        file["more"] = "a file like any other"
    assert places.keys() == {"last"}
    with h5py.File(tmp_path / "file.h5") as file:
        assert file["more"].asstr()[()] == "a file like any other"
        assert file["inner"].attrs["text"] == "ü"
    with pytest.raises(CheckpointError, match="dtype complex128 cannot be shown"):
        lay_out(Group({"z": 1j}), 512)


def test_the_same_state_gives_the_same_file(tmp_path):
    one, other = (save(tmp_path / name, 3, start()) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_the_hdf5_library_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    path = save(tmp_path, 1)
    assert from_tree(read(path, FINGERPRINT).tree) == 0.5


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"data": "xx"}, "other data;"),
        ({"model": "xx"}, "other model"),
        ({"config": "xx", "model": "yy"}, "other config, model"),
        ({"rows": 51}, "other rows;"),
        ({"seed": 1}, "other seed"),
    ],
)
def test_a_checkpoint_of_another_fit_is_named(tmp_path, other, told):
    path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=told):
        read(path, FINGERPRINT | other)
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path, FINGERPRINT | other)


def test_the_last_three_are_kept(tmp_path):
    for phase, iteration in [(1, 1), (1, 1), (1, 50), (2, 1), (2, 1), (2, 2)]:
        path = save(tmp_path, iteration, phase=phase)
        assert newest(tmp_path) == path
    kept = ("phase1_iter50.h5", "phase2_iter1.h5", "phase2_iter1.h5.prev", "phase2_iter2.h5")
    assert names(tmp_path) == [f"checkpoint_{name}" for name in kept]


def test_a_new_fit_in_an_old_folder_is_the_newest(tmp_path):
    for iteration in (70, 80, 90):
        save(tmp_path, iteration)
    path = save(tmp_path, 1, phase=1)
    assert newest(tmp_path) == path
    assert len(names(tmp_path)) == 3


def test_copies_are_ordered_by_when_they_were_written(tmp_path):
    old, new = save(tmp_path / "a", 9), save(tmp_path / "a", 8)
    (tmp_path / "b").mkdir()
    for path in (new, old):  # the older one gets the later time
        shutil.copyfile(path, tmp_path / "b" / path.name)
    assert newest(tmp_path / "b").name == new.name


def damage(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_falls_back_to_the_one_before(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "nlsq_nb.checkpoint")
    save(tmp_path, 1, 1.0)
    path = save(tmp_path, 1, 2.0)
    assert from_tree(read(path, FINGERPRINT).tree) == 2.0
    assert not caplog.records
    damage(path)
    loaded = read(path, FINGERPRINT)
    assert from_tree(loaded.tree) == 1.0
    assert loaded.path.name == "checkpoint_phase2_iter1.h5.prev"
    assert "SHA-256" in caplog.text
    assert ".prev is used instead" in caplog.text
    path.unlink()
    assert from_tree(read(path, FINGERPRINT).tree) == 1.0


def test_a_damaged_file_does_not_become_the_one_before(tmp_path):
    save(tmp_path, 1, 1.0)
    damage(save(tmp_path, 1, 2.0))
    path = save(tmp_path, 1, 3.0)
    damage(path)
    assert from_tree(read(path, FINGERPRINT).tree) == 1.0


def test_a_folder_falls_back_to_the_newest_valid_one(tmp_path, caplog):
    paths = [save(tmp_path, k, float(k)) for k in (1, 2, 3)]
    damage(paths[2])
    assert newest(tmp_path) == paths[1]
    assert "checkpoint_phase2_iter3.h5" in caplog.text
    damage(paths[1])
    damage(paths[0])
    with pytest.raises(CheckpointError, match=r"iter3.*SHA-256.*iter2.*SHA-256.*iter1.*start afresh"):
        newest(tmp_path)


def test_nothing_to_resume_from_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no file is named checkpoint_phase"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint_phase2_iter1\.h5.*unreadable"):
        newest(tmp_path / "checkpoint_phase2_iter1.h5")


def version(path, text):
    data = path.read_bytes()
    return data.replace(b"checkpoint 3.0", b"checkpoint " + text, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: version(p, b"2.0"), "format version 2.0, and this release reads 3.0"),
        (lambda p: version(p, b"x.0"), "not a checkpoint"),
        (lambda p: p.read_bytes()[:-1], r"truncated to \d+ of \d+ bytes"),
        (lambda p: p.read_bytes()[:100], "truncated to 100 bytes"),
        (lambda p: b"", "truncated to 0 bytes"),
        (lambda p: p.read_bytes() + b"x", "SHA-256"),
        (lambda p: p.read_bytes()[512:], "not a checkpoint"),
        (lambda p: p.read_bytes().replace(b"serial 1", b"serial x"), "first line is damaged"),
        (lambda p: plain_hdf5(), "not a checkpoint"),
    ],
)
def test_each_reason_is_told(tmp_path, change, told):
    path = save(tmp_path, 1)
    path.write_bytes(change(path))
    with pytest.raises(CheckpointError, match=told):
        read(path, FINGERPRINT)


def plain_hdf5():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["version"] = "3.0"
        file["phase_state/normalized_params"] = np.zeros(3)
    return memory.getvalue()


# --- the writer ---


@pytest.mark.parametrize("linear", [(), ("a", "c")])
def test_a_resumed_fit_has_the_same_bits_from_every_step(tmp_path, linear):
    steps = []
    whole = fit(lambda *step: steps.append(step), linear=linear)
    assert {(phase, 0) for phase in (1, 2)} < {(phase, state.iteration) for phase, state in steps}
    for phase, state in steps:
        writer = CheckpointWriter(tmp_path, 1, FINGERPRINT, CLASSES)
        writer(phase, state, {})
        assert writer.failure is None
        loaded = read(tmp_path, FINGERPRINT)
        assert (loaded.phase, loaded.iteration) == (phase, state.iteration)
        assert same(fit(None, from_tree(loaded.tree, CLASSES), loaded.phase), whole)


def test_the_writer_writes_when_due_and_at_the_end(tmp_path):
    writer = CheckpointWriter(tmp_path / "new" / "folder", 3, FINGERPRINT, CLASSES)
    state = start()
    folder, due = tmp_path / "new" / "folder", []
    for iteration in range(6):
        writer(1, replace(state, iteration=iteration), {"passes": iteration})
        due.append(newest(folder).name)
    first, third = ["checkpoint_phase1_iter0.h5"], ["checkpoint_phase1_iter3.h5"]
    assert due == first * 3 + third * 3
    writer.flush()
    writer.flush()
    assert names(folder) == [*first, *third, "checkpoint_phase1_iter5.h5"]
    assert read(folder, FINGERPRINT).extra == {"passes": 5}  # of the state, not of the moment of writing


def test_a_fit_goes_on_without_its_checkpoint(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(tmp_path, 1, FINGERPRINT, CLASSES)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        writer(1, replace(start(), iteration=1), {})
    assert "No space left" in writer.failure
    assert "checkpoint_dir" in caplog.text
    writer.flush()
    assert writer.failure is None
    assert names(tmp_path) == ["checkpoint_phase1_iter1.h5"]


def full(_):
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_used_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"checkpoint_dir=.*file"):
        CheckpointWriter(tmp_path / "file", 1, FINGERPRINT, CLASSES)


def test_left_temporary_files_are_swept(tmp_path):
    (tmp_path / ".checkpoint_phase1_iter3.h5.0123abcd.tmp").touch()
    (tmp_path / "notes.tmp").touch()
    CheckpointWriter(tmp_path, 1, FINGERPRINT, CLASSES)
    assert names(tmp_path) == ["notes.tmp"]
