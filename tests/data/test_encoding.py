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
