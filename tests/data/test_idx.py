"""IDX files: every type and number of axes, and all that can be wrong with one."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reading_of import outcome

from gpubp.data.idx import DTYPES, read_idx
from gpubp.errors import DataError

CODES = {dtype: code for code, dtype in DTYPES.items()}


def idx_of(array):
    """The bytes of an IDX file of an array, written by the format's description."""
    magic = struct.pack(">BBBB", 0, 0, CODES[array.dtype.newbyteorder(">").str.replace("|", ">")], array.ndim)
    return magic + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def written(tmp_path):
    """A function that writes bytes to a file and returns its path."""

    def write(content, name="some-idx"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


any_array = st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4))
)


@given(any_array, st.booleans())
def test_every_type_and_number_of_axes_is_read_back(tmp_path_factory, array, packed):
    path, content = tmp_path_factory.mktemp("idx") / "some", idx_of(array)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    read = read_idx(path)
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)
    assert read.astype(array.dtype).tobytes() == array.tobytes()


def test_a_file_that_is_not_compressed_is_mapped(written):
    array = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    assert isinstance(read_idx(written(idx_of(array))), np.memmap)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_array_or_an_error_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("idx") / "some"
    path.write_bytes(content)
    read, said = outcome(read_idx, path)
    if read is None:
        assert said.startswith("some is ")
        assert "\n" not in said
    else:
        assert idx_of(np.asarray(read)) == content


GOOD = idx_of(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no IDX file: it begins with nothing"),
        (b"\0\0", "no IDX file: it begins with 00 00, and an IDX file with 00 00, one of 08, 09, 0b, 0c, 0d, 0e"),
        (b"\1" + GOOD[1:], "no IDX file: it begins with 01 00 08 02"),
        (b"\0\1" + GOOD[2:], "no IDX file"),
        (b"\0\0\x0a" + GOOD[3:], "no IDX file: it begins with 00 00 0a 02"),
        (b"\0\0\x08\0", "no IDX file: it begins with 00 00 08 00"),
        (GOOD[:9], "is cut off within its header: 2 sizes were to follow"),
        (GOOD[:-1], "is cut off: its header announces 3 x 4 numbers, 24 bytes with the header, but there are 23"),
        (GOOD + b"\0", "is too long: its header announces 3 x 4 numbers, 24 bytes with the header, but there are 25"),
        (b"\0\0\x0e\5" + b"\xff" * 20, "is cut off: its header announces 4294967295 x 4294967295 x"),
        (b"\0\0\x08\1\0\0\0\0" + b"x", "is too long: its header announces 0 numbers"),
        (b"\0\0\x08\x41" + bytes(260), f"is no array: its header announces {' x '.join('0' * 65)} numbers, 65 axes"),
        (b"\0\0\x08\x41" + bytes([0, 0, 0, 1]) * 65 + b"x", "is no array: its header announces 1 x 1 x"),
        (
            b"\0\0\x0e\3" + bytes(4) + b"\xff" * 8,
            "is no array: its header announces 0 x 4294967295 x 4294967295 numbers, 3 axes",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_broken_file_is_told_to_be(written, content, said, packed):
    path = written(gzip.compress(content) if packed else content)
    with pytest.raises(DataError) as error:
        read_idx(path)
    assert said in str(error.value)
    assert str(error.value).startswith("some-idx ")


def test_broken_compression(written):
    packed = gzip.compress(GOOD)
    for length in range(2, len(packed)):
        with pytest.raises(DataError, match="some-idx is (cut off|no IDX|damaged)"):
            read_idx(written(packed[:length]))
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    for content in (b"\x1f\x8b" + b"no gzip at all", wrong_sum, packed[:12] + b"\xff\xff" + packed[14:]):
        with pytest.raises(DataError, match="some-idx is cut off or damaged"):
            read_idx(written(content))


def test_no_file_and_a_directory(tmp_path):
    with pytest.raises(DataError, match="nothing' can't be read: No such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        read_idx(tmp_path)
