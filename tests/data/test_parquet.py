"""Parquet files: what each type of column becomes, and what can't be used."""

from __future__ import annotations

import datetime
import decimal
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading_of import outcome

from gpubp.data.encoding import TableEncoder
from gpubp.data.parquet import read_parquet
from gpubp.data.tables import Table
from gpubp.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def written(tmp_path):
    """A function that writes columns to a Parquet file and returns its path."""

    def write(columns, **settings):
        pq.write_table(
            columns if isinstance(columns, pa.Table) else pa.table(columns), tmp_path / "t.parquet", **settings
        )
        return tmp_path / "t.parquet"

    return write


KINDS = {
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.uint8(): st.integers(0, 2**8 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**53), 2**53),
    pa.uint64(): st.integers(0, 2**53),
    pa.float16(): st.floats(width=16, allow_infinity=False),
    pa.float32(): st.floats(width=32, allow_infinity=False),
    pa.float64(): st.floats(allow_infinity=False),
    pa.decimal128(9, 3): st.decimals(-99999, 99999, places=3),
}


@st.composite
def numbers(draw):
    """A type, and values of it with some missing."""
    kind = draw(st.sampled_from(list(KINDS)))
    return kind, draw(st.lists(st.none() | KINDS[kind], min_size=1, max_size=8))


@given(numbers())
def test_numbers_of_every_type_are_read_back_with_missing_ones_as_nan(tmp_path_factory, drawn):
    kind, values = drawn
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    values = [np.float16(v) if v is not None and kind == pa.float16() else v for v in values]
    pq.write_table(pa.table({"x": pa.array(values, kind)}), path)
    cells = read_parquet(path).cells("x")
    assert isinstance(cells, np.ndarray)  # never by way of text
    np.testing.assert_array_equal(cells, [np.nan if v is None else float(v) for v in values])


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=8))
def test_text_is_read_back_from_strings_and_dictionaries(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    text, expected = pa.array(values, pa.string()), ["" if v is None else v.strip() for v in values]
    forms = {
        "s": text,
        "l": text.cast(pa.large_string()),
        "v": text.cast(pa.string_view()),
        "d": text.dictionary_encode(),
    }
    pq.write_table(pa.table(forms), path)
    table = read_parquet(path)
    assert [table.cells(name) for name in forms] == [expected] * 4


def test_truth_values_are_text_and_dictionaries_of_numbers_numbers(written):
    numbers = pa.array([3.5, 1.5, 3.5]).dictionary_encode()
    table = read_parquet(written({"b": [True, None, False], "n": numbers, "none": pa.nulls(3)}))
    assert table.cells("b") == ["True", "", "False"]
    np.testing.assert_array_equal(table.cells("n"), [3.5, 1.5, 3.5])
    with pytest.raises(DataError, match="t.parquet: column 'none' holds no values"):
        table.is_numeric("none")


def test_whole_numbers_beyond_what_a_float_holds_stay_apart_as_classes(written):
    table = read_parquet(written({"x": [1.0, 2.0, 3.0], "id": [2**60, 2**60 + 1, 2**60]}))
    encoder = TableEncoder.fit(table, "id", "classification")
    assert encoder.classes == (str(2**60), str(2**60 + 1))
    np.testing.assert_array_equal(encoder.targets(table), [0, 1, 0])


def test_the_same_table_as_a_csv_is_encoded_in_the_same_way(written):
    x, c, y = [1.5, 2.0, -3.0, 7.0], ["a", "b", "b", "a"], [0, 1, 1, 2]
    table = read_parquet(written({"x": x, "c": c, "y": y}))
    text = Table("t.csv", {"x": list(map(repr, x)), "c": c, "y": ["0", "1.0", "1", "2"]}, range(2, 6))
    encoder = TableEncoder.fit(table, "y")
    assert encoder == TableEncoder.fit(text, "y")
    np.testing.assert_array_equal(encoder.inputs(table), encoder.inputs(text))
    np.testing.assert_array_equal(encoder.targets(table), encoder.targets(text))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([datetime.datetime(2026, 1, 1)], "holds timestamp[us] values: write numbers in its place, such as the year"),
        ([datetime.date(2026, 1, 1)], "holds date32[day] values: write numbers in its place"),
        ([datetime.time(1)], "values: write numbers in its place"),
        ([datetime.timedelta(1)], "holds duration[us] values: write numbers in its place"),
        ([[1, 2]], "is nested (list<"),
        ([{"a": 1}], "is nested (struct<a: int64>): write a column for each of its parts"),
        ([b"bytes"], "holds binary values, neither numbers nor text: remove the column"),
    ],
)
def test_columns_that_can_not_be_used_are_an_error_only_where_they_are_needed(written, values, said):
    table = read_parquet(written({"x": [1.0], "bad": values}))
    assert table.numbers("x") == [1.0]
    with pytest.raises(DataError) as error:
        TableEncoder.fit(table, "x")
    assert str(error.value).startswith("t.parquet: column 'bad' ")
    assert said in str(error.value)


def test_the_index_of_pandas_is_no_input(written):
    table = read_parquet(written({"x": [1.0], "__index_level_0__": [7]}))
    with pytest.raises(DataError, match="'__index_level_0__' is an index that pandas wrote: use to_parquet"):
        table.cells("__index_level_0__")


def test_cells_that_are_no_numbers_are_told_by_their_row(written):
    table = read_parquet(
        written({"x": [1.0, None, 2.0], "i": [1.0, 2.0, np.inf], "l": [1e300, 0, 0]}, row_group_size=1)
    )
    with pytest.raises(DataError, match="t.parquet, row 2, column 'x': the cell is empty. Fill it in"):
        table.numbers("x")
    with pytest.raises(DataError, match="t.parquet, row 3, column 'i': 'inf' is not a finite number"):
        table.numbers("i")
    with pytest.raises(DataError, match=r"t.parquet, row 1, column 'l': '1e\+300' is too large: rescale the column"):
        table.numbers("l")


def test_decimals_too_large_for_a_float_are_told_or_taken(written):
    table = read_parquet(written({"x": pa.array([decimal.Decimal(10) ** 37], pa.decimal128(38, 0))}))
    assert table.numbers("x")[0] == pytest.approx(1e37)


def test_names_that_are_missing_or_the_same(written):
    double = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="t.parquet: columns 1 and 2 are both named 'a'"):
        read_parquet(written(double))
    with pytest.raises(DataError, match="t.parquet: column 1 has no name"):
        read_parquet(written({"": [1]}))


def test_files_that_can_not_be_read(tmp_path, written):
    with pytest.raises(DataError, match="there is no file"):
        read_parquet(tmp_path / "nothing.parquet")
    with pytest.raises(DataError, match="t.parquet has columns but no rows"):
        read_parquet(written({"x": pa.array([], pa.int64())}))
    (tmp_path / "x.parquet").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="x.parquet is no Parquet file, or is cut off or damaged: "):
        read_parquet(tmp_path / "x.parquet")
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(DataError, match="empty.parquet is no Parquet file"):
        read_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError):
        read_parquet(tmp_path)


def test_a_file_that_is_cut_off_or_damaged_is_an_error_or_the_same_numbers(written):
    path = written({"x": list(range(50)), "c": ["a", "b"] * 25}, write_page_checksum=True)
    whole, good = path.read_bytes(), read_parquet(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="t.parquet is no Parquet file, or is cut off or damaged"):
            read_parquet(path)
    for place in range(4, len(whole) // 2, 3):  # the pages, which have checksums
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        read, said = outcome(read_parquet, path)
        assert "\n" not in said
        if read is not None:
            np.testing.assert_array_equal(read.cells("x"), good.cells("x"))
            assert read.cells("c") == good.cells("c")


def test_without_pyarrow_the_message_says_how_to_get_it(written, monkeypatch):
    path = written({"x": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"t.parquet is a Parquet file, which pyarrow reads.*pip install 'gpubp\[data\]'"
    ):
        read_parquet(path)
