"""Which format a file has."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from gpubp.data.arrays import ArrayData
from gpubp.data.reading import format_of, read_file
from gpubp.data.tables import Table
from gpubp.errors import DataError

IDX = b"\0\0\x08\2\0\0\0\1\0\0\0\2ab"
LABELS = b"\0\0\x08\1\0\0\0\1\7"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"PAR1", "csv"),
        ("a.TSV", b"", "csv"),
        ("data", b"a,b\n1,2\n", "csv"),
        ("a.parquet", b"", "parquet"),
        ("data", b"PAR1....", "parquet"),
        ("a.npz", b"", "npz"),
        ("data", b"PK\3\4....", "npz"),
        ("a.npy", b"", "npy"),
        ("data", b"\x93NUMPY..", "npy"),
        ("data", IDX, "idx"),
        ("data.gz", gzip.compress(IDX, mtime=0), "idx"),
        ("train-images-idx3-ubyte", b"\1\2\3\4", "idx"),
        ("train-labels.idx1-ubyte.gz", gzip.compress(b"text", mtime=0), "idx"),
    ],
)
def test_the_format_is_told_by_name_or_beginning(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert format_of(tmp_path / name) == kind


def test_what_is_compressed_and_no_idx(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(DataError, match="t.csv.gz is compressed, and what is in it is no IDX file: unpack it"):
        format_of(tmp_path / "t.csv.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:12])
    with pytest.raises(DataError, match="cut.gz is cut off or damaged"):
        format_of(tmp_path / "cut.gz")


def test_no_file_and_a_directory(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_file(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"is a directory; a CSV, Parquet, \.npz, \.npy or IDX file is needed"):
        read_file(tmp_path)
    with pytest.raises(DataError, match="can't be read: File name too long"):
        read_file(tmp_path / ("x" * 5000))


def test_examples_and_targets_from_two_files(tmp_path):
    (tmp_path / "x").write_bytes(IDX)
    (tmp_path / "t").write_bytes(LABELS)
    np.savez(tmp_path / "d.npz", X=[[1.0, 2.0]])
    (tmp_path / "t.csv").write_text("a\n1\n", encoding="utf-8")
    for name in ("x", "d.npz"):
        data = read_file(tmp_path / name, tmp_path / "t")
        assert isinstance(data, ArrayData)
        assert data.X.shape == (1, 2)
        assert data.targets.source == "t"
        np.testing.assert_array_equal(data.targets.numbers("target"), [7])
    assert read_file(tmp_path / "x").targets is None
    assert isinstance(read_file(tmp_path / "t.csv"), Table)
    with pytest.raises(DataError, match="t.csv is a table, which has a column of targets: use --target"):
        read_file(tmp_path / "t.csv", tmp_path / "t")
    with pytest.raises(DataError, match="d.npz holds no single array: a .npy or IDX file is needed"):
        read_file(tmp_path / "x", tmp_path / "d.npz")
