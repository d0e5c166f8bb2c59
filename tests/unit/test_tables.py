"""Columns come out of text, NPZ and HDF5 as they were written, and what cannot be read says where and why."""

import os
import threading

import h5py
import numpy as np
import pytest

from nlsq_nb.errors import DataError, SourceError
from nlsq_nb.sources.tables import read_table

RNG = np.random.default_rng(3)
T = np.linspace(0.0, 2.0, 7)
S = np.exp(-T) + 0.01 * RNG.normal(size=7)


def written(tmp_path, text, name="data.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def columns(path):
    table = read_table(path)
    return {name: table.column(name).tolist() for name in table.names}


# -- text ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t,s\n1,2\n3,4\n", {"t": [1, 3], "s": [2, 4]}),
        ("t, s\r\n1, 2\r\n3, 4\r\n", {"t": [1, 3], "s": [2, 4]}),
        ("\ufefft;s\n1;2\n", {"t": [1], "s": [2]}),
        ("t\ts\n1\t2", {"t": [1], "s": [2]}),
        ("time (s)\tsignal\n1\t2\n", {"time (s)": [1], "signal": [2]}),
        ('"t","s, mV"\n"1","2"\n', {"t": [1], "s, mV": [2]}),
        ("t   s\n 1   2e-3 # remark\n\n#3 4\n5 -6\n", {"t": [1, 5], "s": [2e-3, -6]}),
        ("1 2 3 4\n", {"x": [1], "y": [2], "sigma": [3], "c4": [4]}),
        ("7\n8\n", {"x": [7, 8]}),
        ("# a study\n# of decay\n\n1 2\n3 4\n", {"of": [1, 3], "decay": [2, 4]}),
        ("# of the year 1978\n1 2\n", {"x": [1], "y": [2]}),
        ("a,,b\n1,2,3\n", {"a": [1], "c2": [2], "b": [3]}),
    ],
)
def test_text(tmp_path, text, expected):
    assert columns(written(tmp_path, text)) == expected


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";"])
def test_savetxt_round_trip(tmp_path, delimiter):
    path = tmp_path / "saved"
    np.savetxt(path, np.c_[T, S], delimiter=delimiter, header=f"t{delimiter}s", fmt="%.17g")
    table = read_table(str(path))
    assert table.names == ("t", "s")
    assert table.named
    np.testing.assert_array_equal(table.column("t"), T)
    np.testing.assert_array_equal(table.column("s"), S)
    assert table.column("s").dtype == np.float64


@pytest.mark.parametrize(
    ("reference", "name"), [("s", "s"), ("2", "s"), ("c2", "s"), ("1", "t"), ("c1", "t")]
)
def test_reference_with_header(tmp_path, reference, name):
    assert read_table(written(tmp_path, "t,s\n1,2\n")).resolve(reference) == name


@pytest.mark.parametrize(("reference", "place"), [("x", 0), ("y", 1), ("sigma", 2), ("4", 3), ("c4", 3), ("c1", 0)])
@pytest.mark.parametrize("comment", ["", "# n o t e\n"])
def test_reference_without_header_row(tmp_path, reference, place, comment):
    table = read_table(written(tmp_path, comment + "1 2 3 4\n"))
    assert table.column(table.resolve(reference)).tolist() == [place + 1.0]


@pytest.mark.parametrize("reference", ["q", "0", "3", "-1", "c3", "9" * 5000, "²", "", "T"])
def test_unknown_reference_lists_the_columns(tmp_path, reference):
    with pytest.raises(DataError, match="2 columns: t, s"):
        read_table(written(tmp_path, "t,s\n1,2\n")).resolve(reference)


def test_a_text_column_does_not_spoil_the_others(tmp_path):
    table = read_table(written(tmp_path, "run,t,s\nfirst,1,2\nsecond,3,\n"))
    assert table.candidates == ("t", "s")
    assert table.column("t").tolist() == [1.0, 3.0]
    with pytest.raises(DataError, match="'s' cannot be used: line 3 has an empty cell"):
        table.column("s")
    with pytest.raises(DataError, match="line 2 has 'first' where a number"):
        table.column("run")


def test_rows_are_named_as_a_person_counts(tmp_path):
    table = read_table(written(tmp_path, "# note\nt,s\n1,2\n\n3,nan\n"))
    row = int(np.flatnonzero(np.isnan(table.column("s")))[0])
    assert table.where(row) == "data row 2 (line 5)"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "holds no data"),
        ("# only\n\n  # comments", DataError, "holds no data"),
        ("# c\nt,s\n", DataError, "no row of numbers, only line 2: 't,s'"),
        ("t,s\n1,2\n3\n", DataError, "line 3 has 1 columns where 2 are expected"),
        ("1 2\n3 4 5\n", DataError, "line 2 has 3 columns where 2 are expected"),
        ("time (s) signal\n1 2\n", DataError, "line 2 has 2 columns where 3 are expected"),
        ("t,t\n1,2\n", DataError, "two columns called 't'"),
        (b"\x7fELF\x02\x01\x00\x00", SourceError, "neither UTF-8 text nor"),
        ("x y\n1 2\n".encode("utf-16"), SourceError, "neither UTF-8 text nor"),
        (bytes(range(256)), SourceError, "neither UTF-8 text nor"),
    ],
)
def test_bad_text(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read_table(written(tmp_path, text))


@pytest.mark.parametrize("cell", ["1_000", "0x10", "1,5", "--1", "1+2j"])
def test_what_is_no_number(tmp_path, cell):
    table = read_table(written(tmp_path, f"t;s\n1;2\n{cell};3\n"))
    assert f"line 3 has '{cell}'" in table.refused["t"]


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        read_table(str(tmp_path / "none.csv"))
    with pytest.raises(SourceError, match="cannot read"):
        read_table(str(tmp_path))
    with pytest.raises(SourceError, match="null byte"):
        read_table("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_can_be_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("t,s\n1,2\n",))
    writer.start()
    assert columns(str(path)) == {"t": [1], "s": [2]}
    writer.join()


def test_many_rows_keep_every_bit(tmp_path):
    values = RNG.normal(size=(20_000, 2)) * 10.0 ** RNG.integers(-200, 200, size=(20_000, 1))
    path = tmp_path / "big.csv"
    np.savetxt(path, values, delimiter=",", fmt="%.17g")
    table = read_table(str(path))
    np.testing.assert_array_equal(np.c_[table.column("x"), table.column("y")], values)


# -- NPZ -------------------------------------------------------------------------------------
def test_npz(tmp_path):
    path = tmp_path / "data.bin"  # the content decides, not the name
    np.savez(path.with_suffix(".npz"), t=T, counts=np.arange(7, dtype=">u2"), flag=T > 1, image=np.ones((2, 2)))
    path.with_suffix(".npz").rename(path)
    table = read_table(str(path))
    assert table.names == ("t", "counts", "flag", "image")
    assert table.candidates == ("t", "counts", "flag")
    np.testing.assert_array_equal(table.column("t"), T)
    np.testing.assert_array_equal(table.column("counts"), np.arange(7.0))
    assert table.column("flag").dtype == np.float64
    assert table.where(0) == "data row 1"
    with pytest.raises(DataError, match=r"its shape is \(2, 2\)"):
        table.column("image")
    with pytest.raises(DataError, match="no column '1'"):
        table.resolve("1")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_npz_never_unpickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez_compressed("d.npz", x=np.array([Bomb()], dtype=object), y=T, z=T * 1j, s=np.array(["a"]))
    table = read_table("d.npz")
    assert table.candidates == ("y",)
    for name, reason in {"x": "allow_pickle=False", "z": "complex128", "s": "<U1"}.items():
        with pytest.raises(DataError, match=reason):
            table.column(name)
    assert not (tmp_path / "exploded").exists()


def test_damaged_npz(tmp_path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=RNG.normal(size=500), y=RNG.normal(size=500))
    whole = path.read_bytes()
    for damaged in (whole[:40], whole[: len(whole) // 2], whole[:300] + bytes(900) + whole[1200:]):
        path.write_bytes(damaged)
        with pytest.raises((SourceError, DataError)):
            read_table(str(path)).column("x")


# -- HDF5 ------------------------------------------------------------------------------------
def test_hdf5_nested(tmp_path):
    path = tmp_path / "data.any"
    with h5py.File(path, "w") as file:
        file["runs/one/t"] = T
        file["runs/one/s"] = S.astype("f4")
        file["runs/two/s"] = S
        file["n"] = np.arange(7)
        file["scalar"] = 1.0
        file["names"] = ["a", "b"]
        file["pairs"] = np.zeros(3, dtype=[("a", float), ("b", float)])
        file["empty"] = h5py.Empty("f8")
        file["type"] = np.dtype("f8")
    table = read_table(str(path))
    assert set(table.candidates) == {"n", "runs/one/t", "runs/one/s", "runs/two/s"}
    np.testing.assert_array_equal(table.column(table.resolve("t")), T)
    np.testing.assert_array_equal(table.column(table.resolve("/runs/one/s")), S.astype("f4"))
    np.testing.assert_array_equal(table.column(table.resolve("runs/two/s")), S)
    with pytest.raises(DataError, match="'s' may be runs/one/s or runs/two/s"):
        table.resolve("s")
    for name, reason in {"scalar": "shape", "names": "dtype is object", "pairs": "dtype", "empty": "shape"}.items():
        with pytest.raises(DataError, match=reason):
            table.column(name)


def test_hdf5_follows_nothing(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["s"] = S
    (tmp_path / "raw").write_bytes(S.tobytes())
    path = tmp_path / "data.h5"
    layout = h5py.VirtualLayout(shape=(7,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(secret), "s", shape=(7,))
    with h5py.File(path, "w") as file:
        file["g/t"] = T
        file["same"] = file["g/t"]
        file["g/up"] = file["/"]  # hard links in a circle
        file["soft"] = h5py.SoftLink("/g/t")
        file["g/outside"] = h5py.ExternalLink(str(secret), "/s")
        file["group"] = h5py.SoftLink("/g")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (7,), "f8", external=[(str(tmp_path / "raw"), 0, 56)])
    table = read_table(str(path))
    assert set(table.candidates) == {"same", "g/t"}
    np.testing.assert_array_equal(table.column("same"), T)
    for name in ("soft", "g/outside", "group"):
        with pytest.raises(DataError, match="soft or external link"):
            table.column(name)
    for name in ("virtual", "raw"):
        with pytest.raises(DataError, match="stored in other files"):
            table.column(name)
    with pytest.raises(DataError, match="no column 'group/t'"):
        table.resolve("group/t")


def test_hdf5_with_a_user_block(tmp_path):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["t"] = T
    np.testing.assert_array_equal(read_table(str(path)).column("t"), T)


def test_damaged_hdf5(tmp_path):
    path = tmp_path / "data.h5"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(SourceError, match="as HDF5"):
        read_table(str(path))
    with h5py.File(path, "w") as file:
        file.create_dataset("t", data=np.repeat(T, 1000), chunks=(100,), compression="gzip")
    whole = path.read_bytes()
    for size in (8, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="as HDF5"):
            read_table(str(path))
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises((SourceError, DataError)):
        read_table(str(path)).column("t")
