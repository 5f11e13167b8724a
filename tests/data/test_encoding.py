"""From tables to arrays and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubp.data.encoding import Column, TableEncoder
from gpubp.data.tables import Table
from gpubp.errors import DataError, ModelFileError, SettingError


def table_of(**columns):
    """A table of these cells; its first row is on line 2."""
    return Table("t.csv", columns, range(2, 2 + len(next(iter(columns.values())))))


PETS = table_of(
    kind=["dog", "cat", "dog", "cow"],
    weight=["10", "4.5", "7", "600"],
    sold=["yes", "no", "no", "no"],
    price=["100.5", "20", "70", "900"],
)


def test_numbers_and_categories_side_by_side():
    encoder = TableEncoder.fit(PETS, "sold")
    assert encoder.columns == (Column("kind", ("cat", "cow", "dog")), Column("weight"), Column("price"))
    assert (encoder.n_in, encoder.n_out, encoder.loss) == (5, 2, "softmax_cross_entropy")
    np.testing.assert_array_equal(
        encoder.inputs(PETS), [[0, 0, 1, 10, 100.5], [1, 0, 0, 4.5, 20], [0, 0, 1, 7, 70], [0, 1, 0, 600, 900]]
    )
    assert encoder.classes == ("no", "yes")
    np.testing.assert_array_equal(encoder.targets(PETS), [1, 0, 0, 0])


def test_a_quantity_is_standardised_and_restored():
    encoder = TableEncoder.fit(PETS, "price")
    assert (encoder.task, encoder.n_out, encoder.loss) == ("regression", 1, "squared_error")
    T = encoder.targets(PETS)
    np.testing.assert_array_equal(T, [100.5, 20, 70, 900])
    scaled = encoder.with_target_scale(T).standardize_targets(T)
    assert abs(scaled.mean()) < 1e-12
    assert scaled.std() == pytest.approx(1)
    np.testing.assert_allclose(encoder.with_target_scale(T).restore_targets(scaled[:, None]), T)
    assert encoder.with_target_scale(np.ones(3)).target_scale == 1


def test_class_indices_are_not_standardised():
    encoder = TableEncoder.fit(PETS, "sold").with_target_scale(np.array([0, 0, 5]))
    np.testing.assert_array_equal(encoder.standardize_targets(np.array([1, 0])), [1, 0])


@pytest.mark.parametrize(
    ("cells", "task", "expected"),
    [
        (["a", "b"], "auto", "classification"),
        (["0", "1.0", "2"], "auto", "classification"),
        ([str(i) for i in range(20)], "auto", "classification"),
        ([str(i) for i in range(21)], "auto", "regression"),
        (["0.5", "1"], "auto", "regression"),
        (["0", "1"], "regression", "regression"),
        (["0.5", "1"], "classification", "classification"),
        ([str(i) for i in range(30)], "classification", "classification"),
    ],
)
def test_which_task_a_target_asks_for(cells, task, expected):
    assert TableEncoder.fit(table_of(x=["1"] * len(cells), y=cells), "y", task).task == expected


def test_classes_that_are_numbers_are_in_numeric_order_and_spelled_in_one_way():
    table = table_of(x=["1"] * 5, y=["10", "9.0", "-1", "9", "1e1"])
    encoder = TableEncoder.fit(table, "y")
    assert encoder.classes == ("-1", "9", "10")
    np.testing.assert_array_equal(encoder.targets(table), [2, 1, 0, 1, 2])
    halves = TableEncoder.fit(table_of(x=["1", "1"], y=["0.50", "1.5"]), "y", "classification")
    assert halves.classes == ("0.5", "1.5")


def test_classes_of_text_are_left_as_they_are():
    encoder = TableEncoder.fit(table_of(x=["1"] * 3, y=["01", "1", "a"]), "y", "classification")
    assert encoder.classes == ("01", "1", "a")


@pytest.mark.parametrize(
    ("columns", "target", "task", "said"),
    [
        ({"x": ["1"], "y": ["a"]}, "z", "auto", "t.csv has no column 'z'"),
        ({"y": ["a", "b"]}, "y", "auto", "no column but the target 'y'"),
        ({"x": ["1", "1"], "y": ["a", "a"]}, "y", "auto", "every row has the class 'a' in column 'y'; two are needed"),
        ({"x": ["1", "1"], "y": ["1", "1.0"]}, "y", "auto", "every row has the class '1'"),
        ({"x": ["1", "1"], "y": ["2.5", "2.5"]}, "y", "auto", "every row has 2.5 in column 'y'"),
        ({"x": ["1", "1"], "y": ["a", "b"]}, "y", "regression", "line 2, column 'y': 'a' is not a number"),
        ({"x": ["1", "1"], "y": ["a", ""]}, "y", "auto", "line 3, column 'y': the cell is empty"),
        ({"x": ["1", "1"], "y": ["1", "nan"]}, "y", "auto", "line 3, column 'y': 'nan' stands for a missing value"),
        ({"x": ["1"] * 10, "y": ["1"] * 9 + ["a"]}, "y", "auto", "line 11, column 'y': 'a' is not a number"),
        ({"x": ["a", ""], "y": ["1", "2"]}, "y", "auto", "line 3, column 'x': the cell is empty"),
        (
            {"x": [f"name {i}" for i in range(30)], "y": ["0", "1"] * 15},
            "y",
            "auto",
            "column 'x' holds 30 different texts in 30 rows, such as 'name 0'",
        ),
    ],
)
def test_tables_that_nothing_can_be_learned_from(columns, target, task, said):
    with pytest.raises(DataError) as error:
        TableEncoder.fit(table_of(**columns), target, task)
    assert said in str(error.value)


def test_many_categories_are_fine_where_rows_share_them():
    cells = [f"town {i % 25}" for i in range(50)]
    assert TableEncoder.fit(table_of(x=cells, y=["0", "1"] * 25), "y").n_in == 25


def test_an_unknown_task():
    with pytest.raises(SettingError, match="unknown task 'sorting': use 'auto', 'classification' or 'regression'"):
        TableEncoder.fit(PETS, "sold", "sorting")


@pytest.mark.parametrize("cell", ["1", "1e37", "-0", "inf", "x"])
def test_text_and_infinities_among_numbers(cell):
    table = table_of(x=["1"] * 10 + [cell], y=["0", "1"] * 5 + ["0"])
    encoder = TableEncoder.fit(table, "y")
    assert encoder.columns == (Column("x"),)
    if cell in "infx":
        with pytest.raises(DataError, match=f"t.csv, line 12, column 'x': '{cell}'"):
            encoder.inputs(table)
    else:
        assert encoder.inputs(table)[-1, 0] == float(cell)


def test_other_rows_need_the_same_columns_and_categories():
    encoder = TableEncoder.fit(PETS, "sold")
    other = table_of(price=["1", "2"], more=["", "x"], kind=["cow", "dog"], weight=["3", "4"])
    np.testing.assert_array_equal(encoder.inputs(other), [[0, 1, 0, 3, 1], [0, 0, 1, 4, 2]])
    with pytest.raises(DataError) as error:
        encoder.inputs(table_of(price=["1"], kind=["cow"]))
    assert str(error.value) == "t.csv lacks the column weight, which the model takes. Its columns: price, kind"
    with pytest.raises(DataError, match="lacks the columns kind, price, which"):
        encoder.inputs(table_of(weight=["1"]))
    with pytest.raises(DataError) as error:
        encoder.inputs(table_of(price=["1", "1"], kind=["cow", "fish"], weight=["3", "4"]))
    said = "t.csv, line 3, column 'kind': 'fish' was not in the training data; known are cat, cow, dog"
    assert str(error.value) == said
    with pytest.raises(DataError, match="column 'sold': 'maybe' was not in the training data; known are no, yes"):
        encoder.targets(table_of(sold=["no", "maybe"]))
    with pytest.raises(DataError, match="has no column 'sold'"):
        encoder.targets(other)


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map("<{}>".format)


@st.composite
def tables(draw):
    """A table of numbers and categories with a target 'y', and a task that fits it."""
    N = draw(st.integers(2, 12))
    columns = {}
    for name in draw(st.lists(cells, min_size=1, max_size=4, unique=True)):
        if draw(st.booleans()):
            columns[name] = [repr(v) for v in draw(st.lists(st.floats(-1e38, 1e38), min_size=N, max_size=N))]
        else:
            texts = draw(st.lists(cells, min_size=1, max_size=3))
            columns[name] = draw(st.lists(st.sampled_from(texts), min_size=N, max_size=N))
    task = draw(st.sampled_from(["classification", "regression"]))
    values = st.integers(-9, 9) if task == "regression" else cells
    columns["y"] = list(map(str, draw(st.lists(values, min_size=N, max_size=N).filter(lambda ys: len(set(ys)) > 1))))
    return table_of(**columns), task


@given(tables())
def test_an_encoder_survives_json(drawn):
    table, task = drawn
    encoder = TableEncoder.fit(table, "y", task)
    T = encoder.targets(table)
    encoder = encoder.with_target_scale(T)
    again = TableEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.inputs(table), encoder.inputs(table))
    np.testing.assert_array_equal(again.targets(table), T)
    assert encoder.inputs(table).shape == (len(table), encoder.n_in)
    start = 0
    for column in encoder.columns:
        block = encoder.inputs(table)[:, start : start + column.width]
        start += column.width
        if column.categories is None:
            np.testing.assert_array_equal(block[:, 0], [float(cell) for cell in table.columns[column.name]])
        else:
            np.testing.assert_array_equal(block.sum(axis=1), 1)
            assert [column.categories[i] for i in block.argmax(axis=1)] == table.columns[column.name]
            assert list(column.categories) == sorted(set(column.categories))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("columns"),
        lambda data: data.update(columns=[{"name": "x"}]),
        lambda data: data.update(columns=3),
        lambda data: data.update(task="sorting"),
        lambda data: data.update(target_mean="much"),
        lambda data: data.update(classes=None),
    ],
)
def test_damaged_json(change):
    data = TableEncoder.fit(PETS, "sold").to_json()
    change(data)
    with pytest.raises(ModelFileError, match="the description of the table's columns is damaged"):
        TableEncoder.from_json(data)
    with pytest.raises(ModelFileError):
        TableEncoder.from_json(None)


GAPS = table_of(
    age=["1", "", "3", "NA", "100"],
    height=["1.5", "2", "2.5", "3", "3.5"],
    town=["a", "", "b", "nan", "a"],
    kind=["x", "y", "x", "y", "x"],
)


def test_missing_numbers_are_an_error_that_counts_them():
    table = table_of(a=["1", "2", "?"], b=["", "nan", "3"], c=["1", "2", "3"], y=["p", "q", "p"])
    encoder = TableEncoder.fit(table, "y")
    with pytest.raises(DataError) as error:
        encoder.inputs(table)
    assert str(error.value) == (
        "t.csv, line 4, column 'a': '?' stands for a missing value. Fill it in, or remove the row, or train with "
        "--missing median (3 missing in all, in columns a, b)"
    )
    numbers = Table("t.parquet", {"a": np.array([1.0, np.nan]), "y": ["p", "q"]}, range(1, 3), "row")
    with pytest.raises(
        DataError, match=r"t.parquet, row 2, column 'a': the cell is empty.*\(1 missing in all, in column 'a'"
    ):
        TableEncoder.fit(numbers, "y").inputs(numbers)


def test_missing_numbers_are_the_median_with_an_indicator():
    encoder = TableEncoder.fit(GAPS, "kind", missing="median")
    assert encoder.columns == (
        Column("age", None, 3.0, True),
        Column("height", None, 2.5, False),
        Column("town", ("", "a", "b")),
    )
    assert encoder.input_names == ["age", "age", "height", "town", "town", "town"]
    np.testing.assert_array_equal(
        encoder.inputs(GAPS),
        [
            [1, 0, 1.5, 0, 1, 0],
            [3, 1, 2, 1, 0, 0],
            [3, 0, 2.5, 0, 0, 1],
            [3, 1, 3, 1, 0, 0],
            [100, 0, 3.5, 0, 1, 0],
        ],
    )
    assert TableEncoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


def test_medians_are_those_of_the_rows_that_are_trained_on():
    encoder = TableEncoder.fit(GAPS, "kind", missing="median")
    some = encoder.with_medians(GAPS, np.array([0, 4]))
    assert some.columns[:2] == (Column("age", None, 50.5, False), Column("height", None, 2.5, False))
    assert encoder.with_medians(GAPS, np.array([1, 3])).columns[0] == Column("age", None, 3.0, True)  # none to take


def test_a_number_that_is_missing_only_later_is_the_median_too():
    encoder = TableEncoder.fit(GAPS, "kind", missing="median")
    other = Table("p.parquet", {"age": [""], "height": np.array([np.nan]), "town": ["b"]}, range(1, 2), "row")
    np.testing.assert_array_equal(encoder.inputs(other), [[3, 1, 2.5, 0, 0, 1]])
    with pytest.raises(DataError, match="t.csv, line 2, column 'height': 'tall' is not a number"):
        encoder.inputs(table_of(age=["1"], height=["tall"], town=["a"]))


def test_the_target_may_miss_no_value_whatever_the_policy():
    for cells in (["1.5", "", "2.5"], ["a", "", "b"]):
        with pytest.raises(DataError, match="t.csv, line 3, column 'y': the cell is empty"):
            TableEncoder.fit(table_of(x=["1", "2", "3"], y=cells), "y", missing="median")


def test_an_unknown_policy():
    with pytest.raises(SettingError, match="unknown policy 'mean' for missing values: use 'error' or 'median'"):
        TableEncoder.fit(PETS, "sold", missing="mean")


def test_unseen_categories_are_zeros_where_that_is_asked_for():
    encoder = TableEncoder.fit(PETS, "sold")
    other = table_of(kind=["fish", "cow", "ant", "fish", ""], weight=["1"] * 5, price=["2"] * 5)
    X = encoder.inputs(other, unseen="zeros")
    np.testing.assert_array_equal(X[:, :3], [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(X[:, 3:], [[1, 2]] * 5)
    assert encoder.unseen(other) == {"kind": {"": 1, "ant": 1, "fish": 2}}
    assert encoder.unseen(PETS) == {}
    between = TableEncoder.fit(table_of(a=["1", "2"], b=["x", "y"], c=["p", "q"], d=["k", "l"]), "d")
    X = between.inputs(table_of(a=["5"], b=["z"], c=["q"]), unseen="zeros")
    np.testing.assert_array_equal(X, [[5, 0, 0, 0, 1]])


def test_the_description_of_an_older_model_file_is_read():
    data = TableEncoder.fit(PETS, "sold").to_json()
    for column in data["columns"]:
        del column["median"], column["indicator"]
    assert TableEncoder.from_json(data) == TableEncoder.fit(PETS, "sold")


@given(st.lists(st.none() | st.floats(-1e38, 1e38), min_size=2, max_size=30).filter(lambda values: any(values)))
def test_the_median_is_that_of_numpy_and_no_other_value_changes(values):
    cells = ["" if value is None else repr(value) for value in values]
    table = table_of(x=cells, y=[str(i) for i in range(len(cells))])
    encoder = TableEncoder.fit(table, "y", "regression", missing="median")
    X = encoder.inputs(table)
    known = [value for value in values if value is not None]
    np.testing.assert_array_equal(X[:, 0], [np.median(known) if value is None else value for value in values])
    assert X.shape[1] == 1 + (None in values)
    if None in values:
        np.testing.assert_array_equal(X[:, 1], [value is None for value in values])
