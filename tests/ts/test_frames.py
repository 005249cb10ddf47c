"""Long frames are checked by name, sorted, and become panels."""

import numpy as np
import pandas as pd
import pytest

from xlstm_ts.frames import Columns, future_frame, read_panel

from .conftest import make_panel

COLUMNS = Columns()


def test_series_keep_the_order_in_which_the_frame_names_them() -> None:
    panel = read_panel(make_panel({"z": 5, "a": 4}), COLUMNS)

    assert panel.ids.tolist() == ["z", "a"]
    assert panel.lengths.tolist() == [5, 4]


def test_a_missing_covariate_is_named_with_its_own_cure() -> None:
    with pytest.raises(ValueError, match=r"no column 'promotion'.*add it, or leave it out"):
        read_panel(make_panel({"a": 5}), Columns(known=("promotion",)))


def test_unsorted_rows_are_put_in_order() -> None:
    frame = make_panel({"z": 5, "a": 4})

    panel = read_panel(frame.iloc[::-1], COLUMNS)

    by_name = dict(zip(panel.ids, np.split(panel.values, panel.lengths.cumsum()[:-1]), strict=True))
    np.testing.assert_array_equal(by_name["z"], frame.loc[frame["unique_id"] == "z", "y"])


def test_integer_columns_of_values_become_floats() -> None:
    panel = read_panel(make_panel({"a": 5}).assign(y=[1, 2, 3, 4, 5]), COLUMNS)

    assert panel.values.dtype == np.float64


def test_the_future_frame_continues_each_series_at_its_own_end() -> None:
    panel = read_panel(make_panel({"a": 3, "b": 5}), COLUMNS)

    assert future_frame(panel.ids, panel.last_ds, panel.frequency, 2, COLUMNS)["ds"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("column", ["unique_id", "ds", "y"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(ValueError, match=f"no column '{column}'.*rename it"):
        read_panel(make_panel({"a": 5}).drop(columns=column), COLUMNS)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="empty: pass at least one series"):
        read_panel(make_panel({"a": 5}).iloc[:0], COLUMNS)


def test_something_else_than_a_frame_is_refused() -> None:
    with pytest.raises(TypeError, match="DataFrame in long form, got ndarray"):
        read_panel(np.zeros((3, 3)), COLUMNS)


def test_a_duplicate_timestamp_is_named() -> None:
    frame = make_panel({"a": 5, "b": 5})
    frame.loc[7, "ds"] = 2

    with pytest.raises(ValueError, match=r"series 'b' has more than one row at ds = 2 \(row 7\).*drop or aggregate"):
        read_panel(frame, COLUMNS)


def test_a_target_that_is_no_number_is_named() -> None:
    frame = make_panel({"a": 5}).assign(y=["12", "x", "3", "4", "5"])

    with pytest.raises(ValueError, match=r"column 'y' must be numeric, .* 'x' in row 1: convert"):
        read_panel(frame, COLUMNS)


def test_an_infinite_target_is_named() -> None:
    frame = make_panel({"a": 5, "b": 5})
    frame.loc[6, "y"] = np.inf

    with pytest.raises(ValueError, match=r"'y' of series 'b' is inf at ds = 2 \(row 6\): make it NaN"):
        read_panel(frame, COLUMNS)


def test_missing_targets_stay_missing() -> None:
    frame = make_panel({"a": 5})
    frame.loc[2, "y"] = np.nan

    assert np.isnan(read_panel(frame, COLUMNS).values).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("column", ["unique_id", "ds"])
def test_a_missing_name_or_time_is_named(column: str) -> None:
    frame = make_panel({"a": 5}, start="2020-01-01", freq="D").astype({"unique_id": object})
    frame.loc[3, column] = None

    with pytest.raises(ValueError, match=f"column '{column}' is missing in row 3"):
        read_panel(frame, COLUMNS)


def test_times_as_text_are_refused_with_the_conversion_that_helps() -> None:
    frame = make_panel({"a": 5}).assign(ds=["2020-01-01"] * 5)

    with pytest.raises(ValueError, match=r"'ds' must hold integers or timestamps.*pd\.to_datetime"):
        read_panel(frame, COLUMNS)


@pytest.mark.parametrize(("start", "freq", "expected"), [(1, None, "3"), ("2020-01-01", "D", "2020-01-03 00:00:00")])
def test_a_gap_is_named_with_the_time_that_is_missing(start: object, freq: str | None, expected: str) -> None:
    frame = make_panel({"a": 6, "b": 6}, start, freq).drop(index=8)

    with pytest.raises(ValueError, match=f"series 'b' has a gap .*expected {expected}.*insert the missing rows"):
        read_panel(frame, COLUMNS)


def test_a_gap_in_the_only_series_is_found() -> None:
    frame = make_panel({"a": 12}, "2020-01-01", "MS").drop(index=9)

    with pytest.raises(ValueError, match=r"series 'a' has a gap .*expected 2020-10-01"):
        read_panel(frame, COLUMNS)


def test_a_series_of_another_frequency_is_named() -> None:
    frame = pd.concat([make_panel({"a": 6}, "2020-01-01", "D"), make_panel({"b": 6}, "2020-01-01", "h")])

    with pytest.raises(ValueError, match="series 'b' has frequency 'h' where 'D' is expected"):
        read_panel(frame, COLUMNS)


def test_names_and_rows_that_are_numbers_are_shown_as_numbers() -> None:
    frame = make_panel({"a": 6}).assign(unique_id=3).drop(index=4)

    with pytest.raises(ValueError, match=r"series 3 has a gap .*\(row 5\)"):
        read_panel(frame, COLUMNS)


def test_a_frequency_that_no_series_shows_is_an_error() -> None:
    with pytest.raises(ValueError, match="series 'a' has too few or irregular points"):
        read_panel(make_panel({"a": 2}, "2020-01-01", "D"), COLUMNS)


def test_a_value_whose_square_is_not_finite_is_named() -> None:
    frame = make_panel({"a": 5})
    frame.loc[3, "y"] = -1e200

    with pytest.raises(ValueError, match=r"'y' of series 'a' is -1e\+200 at ds = 4 .*less than 1e\+100"):
        read_panel(frame, COLUMNS)


def test_a_column_that_occurs_twice_is_named() -> None:
    frame = make_panel({"a": 5})

    with pytest.raises(ValueError, match="more than one column 'y'"):
        read_panel(pd.concat([frame, frame[["y"]]], axis=1), COLUMNS)


@pytest.mark.parametrize(
    ("frame", "cure"),
    [
        (make_panel({"a": 5}).set_index("ds"), r"'ds'.*in the index, call reset_index\(\)"),
        (make_panel({"a": 5}).drop(columns="unique_id"), r"'unique_id'.*frame\.assign\(unique_id='\.\.\.'\)"),
    ],
)
def test_what_helps_a_frame_without_a_column_is_said(frame: pd.DataFrame, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        read_panel(frame, COLUMNS)


@pytest.mark.parametrize("fill_gaps", [False, True])
def test_integers_where_timestamps_are_expected_are_named(fill_gaps: bool) -> None:
    with pytest.raises(ValueError, match="series 'a' has times of dtype int64 where the frequency 'D' is expected"):
        read_panel(make_panel({"a": 1}), COLUMNS, frequency="D", fill_gaps=fill_gaps)


def test_daily_series_may_run_for_centuries() -> None:
    frame = make_panel({"a": 120_000, "b": 3}, "2000-01-01", "D")

    assert read_panel(frame, COLUMNS).lengths.tolist() == [120_000, 3]


def test_inserted_rows_repeat_the_covariates_before_them() -> None:
    frame = make_panel({"a": 6, "b": 5}).assign(price=np.arange(11.0)).drop(index=[2, 3, 8])

    panel = read_panel(frame, Columns(known=("price",)), fill_gaps=True)

    assert panel.lengths.tolist() == [6, 5]
    assert panel.times.tolist() == [*range(1, 7), *range(1, 6)]
    assert np.flatnonzero(np.isnan(panel.values)).tolist() == [2, 3, 8]
    assert panel.covariates["price"].tolist() == [0, 1, 1, 1, 4, 5, 6, 7, 7, 9, 10]


def test_a_point_between_those_of_the_frequency_is_no_gap() -> None:
    frame = make_panel({"a": 6}, "2020-01-01", "h")
    frame.loc[4, "ds"] += pd.Timedelta(minutes=20)

    with pytest.raises(ValueError, match=r"series 'a' .*expected 2020-01-01 04:00:00 .*got 2020-01-01 04:20:00"):
        read_panel(frame, COLUMNS, frequency="h", fill_gaps=True)
