"""Reading CSV files, and what is said about those that can't be read."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubp.data.tables import Table, as_number, listed, read_csv
from gpubp.errors import DataError


@pytest.fixture
def written(tmp_path):
    """A function that writes text or bytes to a file and returns its path."""

    def write(content, name="some.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).filter(
    lambda text: text == text.strip()
)
names = words.filter(bool)


@st.composite
def tables(draw):
    """Column names and rows of arbitrary text."""
    header = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    rows = draw(st.lists(st.lists(words, min_size=len(header), max_size=len(header)), min_size=1, max_size=6))
    return header, rows


@given(tables(), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_quoted_text_is_read_back(tmp_path_factory, table, delimiter, line_end, bom):
    header, rows = table
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([header, *rows])
    path = tmp_path_factory.mktemp("csv") / "some.csv"
    path.write_bytes(text.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    read = read_csv(path)
    assert list(read.columns) == header
    assert [list(row) for row in zip(*read.columns.values(), strict=True)] == rows
    assert len(read) == len(rows)


@given(
    st.lists(
        st.lists(st.floats(-1e38, 1e38), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(",;\t"),
)
def test_numbers_are_read_back_exactly(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("csv") / "some.csv"
    lines = ["a b,c d,e".replace(",", delimiter), *(delimiter.join(map(repr, row)) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    read = read_csv(path)
    np.testing.assert_array_equal(np.stack([read.numbers(name) for name in ("a b", "c d", "e")], axis=1), rows)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a,b\n1,2\n", {"a": ["1"], "b": ["2"]}),
        ("a;b\n1,5;2,5\n", {"a": ["1,5"], "b": ["2,5"]}),
        ("a\tb\nx, y\tz; z\n", {"a": ["x, y"], "b": ["z; z"]}),
        ("height, m;weight, kg;y\n1;2;3\n", {"height, m": ["1"], "weight, kg": ["2"], "y": ["3"]}),
        ('a, b;c\n"1";"2"\n', {"a, b": ["1"], "c": ["2"]}),
        ("only\n1\n2\n", {"only": ["1", "2"]}),
        (" a , b \n 1 , 2 \n", {"a": ["1"], "b": ["2"]}),
        ('a, "b, c"\n1, "2, 3"\n', {"a": ["1"], "b, c": ["2, 3"]}),
        ("a,b\n\n1,2\n\n\n3,4", {"a": ["1", "3"], "b": ["2", "4"]}),
        ("\ufeffa,b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}),
        ("a,b\r1,2\r", {"a": ["1"], "b": ["2"]}),
        ("ä,🙂\né,ß\n", {"ä": ["é"], "🙂": ["ß"]}),
    ],
)
def test_forms_that_are_read(written, text, columns):
    assert read_csv(written(text)).columns == columns


def test_lines_are_those_of_the_file(written):
    table = read_csv(written('a,b\n\n1,"two\nlines"\n3,4\n'))
    assert list(table.lines) == [3, 5]
    assert table.at(1, "b") == "some.csv, line 5, column 'b'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["some.csv is empty", "header"]),
        (b"\n \n\n", ["some.csv is empty"]),
        (b"\xef\xbb\xbf", ["some.csv is empty"]),
        (b"a,b\n", ["some.csv has a header but no rows"]),
        (b"a,b\n1,2\n3\n", ["some.csv, line 3: 1 field, but the header has 2"]),
        (b"a,b\n1,2\n\n3,4,5\n", ["some.csv, line 4: 3 fields, but the header has 2"]),
        (b"a;b;a\n1;2;3\n", ["columns 1 and 3", "'a'", "Rename one."]),
        (b"a,b, a\n1,2,3\n", ["columns 1 and 3"]),
        (b"1,5,1\n2,3,4\n", ["Is the header line missing?"]),
        (b",b\n1,2\n", ["column 1 has no name", "index=False"]),
        (b"a,b,\n1,2,3\n", ["column 3 has no name"]),
        ("a,b\n1,2\n3,caf\xe9\n".encode("latin-1"), ["not UTF-8", "line 3", "iconv"]),
        ("a,b\n1,2\n".encode("utf-16"), ["not UTF-8", "line 1"]),
        ("a,b\n1,2\n".encode("utf-16-le"), ["not UTF-8", "line 1"]),
        (b"a,b\n1,\0\n", ["not UTF-8", "line 2"]),
        (b'a,b\n1,"2\n3,4\n', ["some.csv, line 2 is not well-formed CSV", "close the quote"]),
        (b'a,b\n1,"2"\n1,"2"x\n', ["some.csv, line 3 is not well-formed CSV"]),
    ],
)
def test_files_that_can_not_be_read(written, content, said):
    with pytest.raises(DataError) as error:
        read_csv(written(content))
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_a_directory_and_a_name_that_is_too_long(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.csv"):
        read_csv(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="is a directory; a CSV file is needed"):
        read_csv(tmp_path)
    with pytest.raises(DataError, match="can't be read: File name too long"):
        read_csv(tmp_path / ("x" * 5000))


def table_of(**columns):
    """A table of these cells; its first row is on line 2."""
    return Table("t.csv", columns, range(2, 2 + len(next(iter(columns.values())))))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("", "the cell is empty. Fill it in, or remove the row"),
        ("NaN", "'NaN' stands for a missing value. Fill it in, or remove the row"),
        ("n/a", "'n/a' stands for a missing value"),
        ("?", "'?' stands for a missing value"),
        ("inf", "'inf' is not a finite number"),
        ("-Infinity", "'-Infinity' is not a finite number"),
        ("1e400", "'1e400' is not a finite number"),
        ("-2e38", "'-2e38' is too large: rescale the column"),
        ("abc", "'abc' is not a number"),
        ("1_000", "'1_000' is not a number"),
    ],
)
def test_cells_that_are_no_numbers(cell, said):
    with pytest.raises(DataError) as error:
        table_of(a=["1", "2", cell, cell]).numbers("a")
    assert str(error.value).startswith(f"t.csv, line 4, column 'a': {said}")


@pytest.mark.parametrize("cell", ["", "nan", "NaN"])
def test_missing_text(cell):
    with pytest.raises(DataError, match="t.csv, line 3, column 'a': "):
        table_of(a=["x", cell]).texts("a")


def test_words_for_missing_are_text_in_a_column_of_text():
    assert table_of(a=["none", "NA", "?"]).texts("a") == ["none", "NA", "?"]


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1", "-2.5", "1e3"], True),
        (["1"] * 9 + ["x"], True),
        (["1"] * 8 + ["x"] * 2, False),
        (["1", "NA", "?", "", "-", "null"], True),
        (["red", "green"], False),
        (["1", "inf", "nan"], True),
        (["a,b", "c,d"], False),
    ],
)
def test_what_makes_a_column_numeric(cells, numeric):
    assert table_of(a=cells).is_numeric("a") is numeric


def test_columns_of_no_kind():
    with pytest.raises(DataError, match="t.csv: column 'a' holds no values"):
        table_of(a=["", "NA"]).is_numeric("a")
    with pytest.raises(DataError, match="t.csv, line 3, column 'a': '3,14' has a comma; write numbers with a decimal"):
        table_of(a=["2", "3,14", "2,72"]).is_numeric("a")


def test_an_unknown_column_is_told_with_the_closest_and_all():
    table = table_of(Age=["1"], Weight=["2"])
    with pytest.raises(DataError) as error:
        table.cells("weigth")
    assert str(error.value) == "t.csv has no column 'weigth'. Did you mean 'Weight'? Its columns: Age, Weight"
    with pytest.raises(DataError, match="no column 'AGES'. Did you mean 'Age'"):
        table.cells("AGES")
    with pytest.raises(DataError, match=r"no column 'xyz'\. Its columns"):
        table.cells("xyz")


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed("abc", limit=3) == "a, b, c"
    assert listed("abc", limit=2) == "a, b, ... (3 in all)"


@given(st.floats())
def test_every_float_is_a_number(value):
    np.testing.assert_equal(as_number(repr(value)), value)
