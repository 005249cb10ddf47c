"""What is asked of a fitted forecaster beyond the next horizon: updates, backtests, paths, scores, files."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from xlstm_ts import PanelSplit, xLSTMForecaster

from .conftest import HORIZON, TINY, make_panel

WHOLE = make_panel({"long": 70, "middle": 51, "short": 33})
CUT = {"long": 60, "middle": 44, "short": 30}


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    old = frame.groupby("unique_id").cumcount() < frame["unique_id"].map(CUT)
    return frame[old], frame[~old]


@pytest.fixture(scope="module")
def trained() -> xLSTMForecaster:
    return xLSTMForecaster(**TINY).fit(split(WHOLE)[0])


@pytest.fixture
def forecaster(trained: xLSTMForecaster, tmp_path) -> xLSTMForecaster:
    """A forecaster of its own for tests that update it."""
    trained.save(tmp_path / "copy")
    return xLSTMForecaster.load(tmp_path / "copy")


def test_an_update_equals_reading_everything_again(forecaster: xLSTMForecaster) -> None:
    expected = forecaster.predict(WHOLE)

    updated = forecaster.update(split(WHOLE)[1]).predict()

    pd.testing.assert_frame_equal(updated, expected, rtol=1e-5)


def test_an_update_of_some_series_leaves_the_others(forecaster: xLSTMForecaster) -> None:
    before = forecaster.predict()
    new = split(WHOLE)[1]

    after = forecaster.update(new[new["unique_id"] == "middle"]).predict()

    same = before["unique_id"] != "middle"
    pd.testing.assert_frame_equal(after[same], before[same], rtol=1e-5)
    assert after.loc[~same, "ds"].iloc[0] == 52


def test_an_update_can_bring_new_series(forecaster: xLSTMForecaster) -> None:
    new = make_panel({"newcomer": 9}, start=7)

    forecast = forecaster.update(new).predict()

    rows = forecast[forecast["unique_id"] == "newcomer"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, forecaster.predict(new), rtol=1e-5)


def test_an_update_that_leaves_a_gap_is_refused(forecaster: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match="series 'long' must begin at 61, right after its last one, got 62"):
        forecaster.update(pd.DataFrame({"unique_id": "long", "ds": [62], "y": [1.0]}))


def test_an_update_after_an_outage_counts_what_is_lacking_as_missing(forecaster: xLSTMForecaster) -> None:
    old, new = split(WHOLE)
    later = new[new.groupby("unique_id").cumcount() >= 2]

    updated = forecaster.set_params(fill_gaps=True).update(later).predict()

    pd.testing.assert_frame_equal(updated, forecaster.predict(pd.concat([old, later])), rtol=1e-5)


@pytest.mark.parametrize(("n_windows", "step"), [(1, None), (5, 1), (4, 3), (None, 1)])
def test_one_pass_equals_the_naive_backtest(trained: xLSTMForecaster, n_windows: int | None, step: int | None) -> None:
    found = trained.backtest(WHOLE, n_windows=n_windows, step=step)

    columns = ["xLSTM", "xLSTM-lo-80", "xLSTM-hi-80"]
    groups = list(found.groupby(["unique_id", "cutoff"], sort=False))
    for (name, cutoff), rows in groups[:: max(1, len(groups) // 25)]:
        known = WHOLE[(WHOLE["unique_id"] == name) & (WHOLE["ds"] <= cutoff)]
        expected = trained.predict(known)
        assert rows["ds"].tolist() == expected["ds"].tolist()
        np.testing.assert_allclose(rows[columns], expected[columns], rtol=1e-5)
    expected = {None: 70 - HORIZON, 1: 1, 5: 5, 4: 4}[n_windows]
    assert found.loc[found["unique_id"] == "long", "cutoff"].nunique() == expected


def test_a_backtest_shows_what_came_true(trained: xLSTMForecaster) -> None:
    joined = trained.backtest(WHOLE, n_windows=3).merge(WHOLE, on=["unique_id", "ds"])

    assert (joined["y_x"] == joined["y_y"]).all()


def test_in_sample_forecasts_are_made_one_step_before(trained: xLSTMForecaster) -> None:
    fitted = trained.predict_insample(WHOLE)

    assert len(fitted) == len(WHOLE) - 3
    assert (fitted["ds"] - fitted["cutoff"] == 1).all()
    row = fitted[(fitted["unique_id"] == "long") & (fitted["ds"] == 40)].iloc[0]
    known = WHOLE[(WHOLE["unique_id"] == "long") & (WHOLE["ds"] < 40)]
    np.testing.assert_allclose(row["xLSTM"], trained.predict(known, horizon=1)["xLSTM"].iloc[0], rtol=1e-5)


def test_a_spike_is_the_greatest_anomaly(trained: xLSTMForecaster) -> None:
    spiked = WHOLE.copy()
    spiked.loc[50, "y"] += 6

    scores = trained.anomaly_scores(spiked)

    assert scores["anomaly"].abs().idxmax() == scores.index[scores["ds"] == 51][0]


def test_horizons_beyond_the_trained_one_begin_with_it(trained: xLSTMForecaster) -> None:
    near, far = trained.predict(level=[50]), trained.predict(horizon=4 * HORIZON, level=[50])

    first = far.groupby("unique_id", sort=False).head(HORIZON).reset_index(drop=True)
    pd.testing.assert_frame_equal(first, near, rtol=1e-5)
    assert far.groupby("unique_id").size().tolist() == [4 * HORIZON] * 3
    assert (far["xLSTM-lo-50"] <= far["xLSTM"]).all()
    assert (far["xLSTM"] <= far["xLSTM-hi-50"]).all()


def test_uncertainty_grows_beyond_the_trained_horizon(trained: xLSTMForecaster) -> None:
    far = trained.predict(horizon=6 * HORIZON)
    width = (far["xLSTM-hi-80"] - far["xLSTM-lo-80"]).groupby(far["unique_id"])

    assert (width.apply(lambda w: w.iloc[-HORIZON:].mean()) > width.apply(lambda w: w.iloc[:HORIZON].mean())).all()


def test_long_forecasts_do_not_depend_on_batch_mates(trained: xLSTMForecaster) -> None:
    together = trained.predict(WHOLE, horizon=15)

    alone = trained.predict(WHOLE[WHOLE["unique_id"] == "middle"], horizon=15)

    rows = together[together["unique_id"] == "middle"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, rows, rtol=1e-4)


def test_a_shorter_horizon_is_the_beginning_of_the_trained_one(trained: xLSTMForecaster) -> None:
    short = trained.predict(horizon=2)

    pd.testing.assert_frame_equal(
        short, trained.predict().groupby("unique_id", sort=False).head(2).reset_index(drop=True)
    )


def test_paths_spread_as_the_intervals_say(trained: xLSTMForecaster) -> None:
    paths = trained.sample(n=2000, horizon=3)
    forecast = trained.predict(horizon=3)

    assert paths.groupby(["unique_id", "ds"]).size().eq(2000).all()
    joined = paths.merge(forecast, on=["unique_id", "ds"], suffixes=("", "-median"))
    inside = (joined["xLSTM"] > joined["xLSTM-lo-80"]) & (joined["xLSTM"] < joined["xLSTM-hi-80"])
    np.testing.assert_allclose(inside.groupby([joined["unique_id"], joined["ds"]]).mean(), 0.8, atol=0.05)


def test_paths_repeat_under_random_state(trained: xLSTMForecaster) -> None:
    pd.testing.assert_frame_equal(trained.sample(n=3), trained.sample(n=3), check_exact=True)
    assert not trained.sample(n=3, random_state=1).equals(trained.sample(n=3))


def test_a_saved_forecaster_forecasts_and_goes_on_the_same(trained: xLSTMForecaster, tmp_path) -> None:
    trained.save(tmp_path / "model")
    loaded = xLSTMForecaster.load(tmp_path / "model")

    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "forecaster.json",
        "forecaster.safetensors",
    ]
    assert loaded.get_params() == trained.get_params()
    pd.testing.assert_frame_equal(loaded.predict(), trained.predict(), rtol=1e-6)
    pd.testing.assert_frame_equal(loaded.update(split(WHOLE)[1]).predict(), trained.predict(WHOLE), rtol=1e-5)


@pytest.mark.parametrize("start", ["2024-03-30 20:00", pd.Timestamp("2024-03-30", tz="Europe/Berlin")])
def test_times_survive_saving(start: object, tmp_path) -> None:
    forecaster = xLSTMForecaster(**{**TINY, "max_epochs": 1}).fit(make_panel({"a": 30}, start=start, freq="h"))
    forecaster.save(tmp_path)

    pd.testing.assert_frame_equal(xLSTMForecaster.load(tmp_path).predict(), forecaster.predict(), rtol=1e-6)


def test_another_format_is_refused(trained: xLSTMForecaster, tmp_path) -> None:
    trained.save(tmp_path)
    file = tmp_path / "forecaster.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 99'))

    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        xLSTMForecaster.load(tmp_path)


def test_the_score_of_following_rows_is_that_of_their_forecast(trained: xLSTMForecaster) -> None:
    _, new = split(WHOLE)

    score = trained.score(new)

    worse = new.assign(y=new["y"] + 5)
    assert trained.score(worse) < score < 0


def test_cross_validation_and_grid_search_run_on_panels() -> None:
    forecaster = xLSTMForecaster(**{**TINY, "max_epochs": 1})
    folds = PanelSplit(n_splits=2, horizon=HORIZON)

    scores = cross_val_score(forecaster, WHOLE, cv=folds, error_score="raise")
    search = GridSearchCV(forecaster, {"embedding_dim": [4, 8]}, cv=folds, error_score="raise").fit(WHOLE)

    assert np.isfinite(scores).all()
    assert search.best_params_["embedding_dim"] in (4, 8)
    assert len(search.best_estimator_.predict()) == 3 * HORIZON


def test_calibration_widens_intervals_that_cover_too_little(forecaster: xLSTMForecaster) -> None:
    noisy = make_panel({"a": 200})
    noisy["y"] += np.random.default_rng(1).normal(size=200)
    before = forecaster.predict(noisy)

    after = forecaster.calibrate(noisy, n_windows=20).predict(noisy)

    covered = forecaster.backtest(noisy, n_windows=20).eval("`xLSTM-lo-80` <= y <= `xLSTM-hi-80`").mean()
    assert 0.78 <= covered <= 0.95
    assert ((after["xLSTM-hi-80"] - after["xLSTM-lo-80"]) > (before["xLSTM-hi-80"] - before["xLSTM-lo-80"])).all()


def test_partial_fit_goes_on_from_the_weights(panel: pd.DataFrame) -> None:
    forecaster = xLSTMForecaster(**TINY).fit(panel)
    before = forecaster.network_.embedding.weight.detach().clone()

    forecaster.set_params(max_epochs=1, steps_per_epoch=5, learning_rate=1e-3).partial_fit(WHOLE)

    moved = (forecaster.network_.embedding.weight - before).abs().max()
    assert 0 < moved < 0.01
    assert clone(forecaster).get_params()["max_epochs"] == 1
    assert torch.isfinite(torch.tensor(forecaster.predict()["xLSTM"].to_numpy())).all()


@pytest.mark.parametrize("name", ["normal", "student_t", "negative_binomial", "point", "huber"])
def test_every_head_forecasts_levels(name: str) -> None:
    counts = WHOLE.assign(y=WHOLE["y"].round())

    forecast = xLSTMForecaster(**TINY | {"val_size": HORIZON}, head=name).fit(counts).predict(level=[50, 90])

    assert forecast.notna().all(axis=None)
    assert (forecast["xLSTM-lo-90"] <= forecast["xLSTM-lo-50"]).all()
    assert (forecast["xLSTM-lo-50"] <= forecast["xLSTM-hi-50"]).all()


@pytest.mark.parametrize("value", [-3.0, 2.5])
def test_counts_must_be_counts(value: float) -> None:
    with pytest.raises(ValueError, match=f"needs counts, got the value {value}"):
        xLSTMForecaster(**TINY, head="negative_binomial").fit(WHOLE.assign(y=value))


def test_a_loaded_forecaster_scores_series_with_their_history(forecaster: xLSTMForecaster, tmp_path) -> None:
    forecaster.save(tmp_path)
    loaded = xLSTMForecaster.load(tmp_path)

    with pytest.raises(ValueError, match="holds no rows, only what it remembers of them: pass whole series"):
        loaded.score(split(WHOLE)[1])
    assert loaded.score(WHOLE) == pytest.approx(forecaster.score(WHOLE))


def test_a_backtest_of_series_that_are_too_short_is_refused(trained: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match=f"no series has a row before the {HORIZON} steps .* the longest has 5 rows"):
        trained.backtest(make_panel({"a": 5}))


def test_levels_must_be_a_list(trained: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match=r"level must be a list of percentages, such as \[80\], got 90"):
        trained.predict(level=90)


def test_a_held_out_tail_that_no_series_can_spare_is_refused() -> None:
    with pytest.raises(ValueError, match="val_size=60 leaves no series more than two seasons"):
        xLSTMForecaster(**TINY | {"val_size": 60}).fit(make_panel({"a": 60}))
