"""Covariates are standardised or coded, known ones reach the steps ahead, and unknown categories have a slot."""

import numpy as np
import pandas as pd
import pytest

from xlstm_ts import xLSTMForecaster
from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.frames import Columns
from xlstm_ts.panel_memory import rows_ahead

from .conftest import HORIZON, TINY

COLUMNS = Columns(static=("shop",), known=("price", "promotion"), past=("visits",))
KINDS = {"static": ["shop"], "known": ["price", "promotion"], "past": ["visits"]}


def panel_of(rows: int = 80, names: str = "ab") -> pd.DataFrame:
    """Sales that follow the price and a promotion of the day."""
    rng = np.random.default_rng(0)
    frames = []
    for level, name in enumerate(names, start=1):
        price = rng.normal(size=rows)
        promotion = rng.choice(["none", "flyer", "radio"], rows)
        y = 20 * level - 2 * price + 6 * (promotion == "radio") + 0.1 * rng.normal(size=rows)
        columns = {"y": y, "price": price, "promotion": promotion, "visits": y + rng.normal(size=rows)}
        frames.append(pd.DataFrame({"unique_id": name, "ds": range(rows), "shop": "x" + name, **columns}))
    return pd.concat(frames, ignore_index=True)


def future_of(panel: pd.DataFrame) -> pd.DataFrame:
    return panel.groupby("unique_id").tail(HORIZON)


@pytest.fixture(scope="module")
def fitted() -> xLSTMForecaster:
    settings = {**TINY, "max_epochs": 12, "steps_per_epoch": 30, "embedding_dim": 16}
    panel = panel_of()
    return xLSTMForecaster(**settings, **KINDS).fit(panel.drop(index=future_of(panel).index))


def test_numbers_are_standardised_and_categories_coded() -> None:
    frame = panel_of()
    encoder = CovariateEncoder.fit(frame, COLUMNS)

    numeric, codes = encoder.transform(frame)

    np.testing.assert_allclose(numeric.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(numeric.std(0), 1, atol=1e-6)
    assert encoder.codes["promotion"] == {"flyer": 1, "none": 2, "radio": 3}
    assert codes[:, 0].tolist() == [1] * 80 + [2] * 80


def test_an_unknown_category_is_warned_of_and_has_a_code_of_its_own() -> None:
    frame = panel_of()
    encoder = CovariateEncoder.fit(frame, COLUMNS)

    with pytest.warns(UserWarning, match="'promotion' has categories that fit did not see, such as 'tv'"):
        _, codes = encoder.transform(frame.assign(promotion="tv"))

    assert not codes[:, 1].any()


def test_missing_covariates_are_those_of_an_average_row() -> None:
    frame = panel_of()
    encoder = CovariateEncoder.fit(frame, COLUMNS)

    numeric, codes = encoder.transform(frame.assign(price=np.nan, promotion=None))

    assert not numeric[:, 0].any()
    assert not codes[:, 1].any()


def test_known_covariates_ahead_are_used(fitted: xLSTMForecaster) -> None:
    future = future_of(panel_of())

    forecast = fitted.predict(future=future)

    error = forecast["xLSTM"].to_numpy() - future["y"].to_numpy()
    plain = future["y"] - future.groupby("unique_id")["y"].transform("mean")
    assert np.abs(error).mean() < 0.6 * np.abs(plain).mean()


def test_a_category_of_the_future_that_fit_did_not_see_is_forecast(fitted: xLSTMForecaster) -> None:
    with pytest.warns(UserWarning, match="'promotion' has categories"):
        forecast = fitted.predict(future=future_of(panel_of()).assign(promotion="tv"))

    assert forecast.notna().all(axis=None)


def test_the_backtest_knows_the_known_covariates_alone(fitted: xLSTMForecaster) -> None:
    panel = panel_of()
    known = panel.drop(index=future_of(panel).index)

    once = fitted.backtest(panel, n_windows=1)["xLSTM"]

    np.testing.assert_allclose(once, fitted.predict(known, future=future_of(panel))["xLSTM"], rtol=1e-5)


def test_pushed_rows_bring_their_covariates(fitted: xLSTMForecaster) -> None:
    panel = panel_of()
    panel = panel[panel["unique_id"] == "a"]
    known, row, future = panel.iloc[:-HORIZON], panel.iloc[-HORIZON], panel.iloc[1 - HORIZON :]
    stream = fitted.stream("a")

    stream.push(row["y"], {name: row[name] for name in ("price", "promotion", "visits")})

    expected = fitted.predict(panel.iloc[: len(known) + 1], horizon=HORIZON - 1, future=future)
    pd.testing.assert_frame_equal(stream.forecast(HORIZON - 1, future=future), expected, rtol=1e-5)


def test_long_horizons_and_files_keep_covariates(fitted: xLSTMForecaster, tmp_path) -> None:
    ahead = panel_of(80 - HORIZON + 15).groupby("unique_id").tail(15)
    fitted.save(tmp_path)

    forecast = xLSTMForecaster.load(tmp_path).predict(horizon=15, future=ahead)

    pd.testing.assert_frame_equal(forecast, fitted.predict(horizon=15, future=ahead), rtol=1e-5)


def test_static_and_past_covariates_keep_their_last_value_ahead(fitted: xLSTMForecaster) -> None:
    remembered = fitted.stream("b").snapshot().remembered
    future = future_of(panel_of())

    _, ahead = rows_ahead(fitted.network_, remembered, HORIZON, fitted.encoder_, future)

    last = remembered.memory.buffer.steps(slice(-1, None))
    shop, visits = ahead.categories[0, :, 0], ahead.numeric[0, :, 1]
    assert shop.tolist() == [2] * HORIZON
    assert visits.tolist() == last.numeric[0, :, 1].tolist() * HORIZON
    assert ahead.numeric[0, :, 0].unique().numel() == HORIZON


@pytest.mark.parametrize(
    ("future", "message"),
    [
        (None, r"\['price', 'promotion'\] are needed for the steps ahead"),
        (future_of(panel_of()).drop(columns="price"), "future has no column 'price'"),
        (future_of(panel_of()).iloc[:-1], "future has no row for series 'b' at ds = 79"),
        (pd.concat([future_of(panel_of())] * 2), "future has more than one row for series 'a' at ds = 74"),
        (
            future_of(panel_of()).astype({"ds": str}),
            r"\['unique_id', 'ds'\] of future must be .* like those of the series",
        ),
        (future_of(panel_of()).assign(price=np.inf), "covariate 'price' is infinite in row 0"),
    ],
)
def test_a_future_that_lacks_something_is_named(fitted: xLSTMForecaster, future: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted.predict(future=future)


def test_a_static_covariate_that_changes_is_named() -> None:
    frame = panel_of()
    frame.loc[5, "shop"] = "other"

    with pytest.raises(ValueError, match="static covariate 'shop' of series 'a' changes at ds = 5"):
        xLSTMForecaster(**TINY, **KINDS).fit(frame)


def test_a_covariate_of_two_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="covariate 'price' is named twice"):
        xLSTMForecaster(**TINY, known=["price"], past=["price"]).fit(panel_of())


def test_times_as_a_covariate_are_refused() -> None:
    frame = panel_of().assign(price=pd.Timestamp("2024-01-01"))

    with pytest.raises(ValueError, match="covariate 'price' holds times: make it numbers"):
        CovariateEncoder.fit(frame, COLUMNS)


def test_a_covariate_cannot_be_the_target() -> None:
    with pytest.raises(ValueError, match="covariate 'y' is the y_col already"):
        xLSTMForecaster(**TINY, past=["y"]).fit(panel_of())
