"""Adaptive intervals cover their share in the long run, also of a series that changes."""

import numpy as np

from xlstm_ts import xLSTMForecaster
from xlstm_ts.adaptation import issue, no_adaptation, observe, widen
from xlstm_ts.quantiles import TRAINED_QUANTILES

LOW, HIGH = TRAINED_QUANTILES.index(0.1), TRAINED_QUANTILES.index(0.9)


def test_intervals_of_values_that_become_ten_times_as_wild_cover_their_share() -> None:
    rng = np.random.default_rng(0)
    adaptation, covered = no_adaptation(1), []
    quantiles = np.linspace(-1.5, 1.5, len(TRAINED_QUANTILES))[None]

    for step in range(4000):
        value = rng.normal() * (1 if step < 1000 else 10)
        wide = widen(adaptation, quantiles, unit=1.0)
        adaptation = observe(issue(adaptation, wide, unit=1.0), value, rate=0.3)
        covered.append(wide[0, LOW] <= value <= wide[0, HIGH])

    np.testing.assert_allclose(np.mean(covered[2000:]), 0.8, atol=0.02)


def test_widened_quantiles_do_not_cross() -> None:
    adaptation = no_adaptation(2)
    adaptation = adaptation._replace(margins=np.random.default_rng(0).uniform(size=adaptation.margins.shape))

    wide = widen(adaptation, np.zeros((5, len(TRAINED_QUANTILES))), unit=2.0)

    assert (np.diff(wide) >= 0).all()
    np.testing.assert_array_equal(wide[1], wide[4])


def test_each_step_ahead_learns_from_its_own_misses() -> None:
    quantiles = np.zeros((2, len(TRAINED_QUANTILES)))
    adaptation = issue(no_adaptation(2), quantiles, unit=1.0)

    adaptation = observe(observe(adaptation, 0.0, rate=1.0), 5.0, rate=1.0)

    assert not adaptation.margins[0].any()
    assert (adaptation.margins[1] > 0).all()
    assert adaptation.pending == ()


def test_a_missing_value_moves_no_margin() -> None:
    adaptation = issue(no_adaptation(2), np.zeros((2, len(TRAINED_QUANTILES))), unit=1.0)

    assert not observe(adaptation, np.nan, rate=1.0).margins.any()


def test_a_stream_widens_its_intervals_after_misses(fitted: xLSTMForecaster) -> None:
    stream = fitted.stream("long", adapt=0.5)
    before = stream.snapshot()
    for value in (5.0, 15.0, 5.0, 15.0):
        stream.forecast()
        stream.push(value)

    adapted = stream.forecast()
    plain = fitted.stream("long")
    for value in (5.0, 15.0, 5.0, 15.0):
        plain.push(value)

    assert (adapted["xLSTM-hi-80"] > plain.forecast()["xLSTM-hi-80"]).iloc[0]
    np.testing.assert_allclose(adapted["xLSTM"], plain.forecast()["xLSTM"])
    stream.restore(before)
    assert not stream.snapshot().adaptation.margins.any()
