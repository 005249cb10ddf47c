"""scikit-learn's own estimator checks; those that do not apply are listed with the reason."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from xlstm_ts import xLSTMForecaster

# To scikit-learn a row is a sample and a column a feature; here an array's row is a series and its columns are times.
SERIES = "rows are series of any length, columns are points in time and no features"
DO_NOT_APPLY = {
    "check_n_features_in_after_fitting": SERIES,
    "check_n_features_in": SERIES,
    "check_fit1d": "a flat array is one series",
    "check_fit2d_predict1d": "a flat array is one series",
    "check_fit2d_1feature": SERIES,
    "check_estimators_empty_data_messages": SERIES,
    "check_dtype_object": "the check asks for another message about what is no number",
    "check_estimators_nan_inf": "NaN is a missing value",
    "check_methods_sample_order_invariance": "a forecast has the series' names, which follow their order",
    "check_methods_subset_invariance": "a forecast has the series' names, which follow their order",
}


def not_applicable(estimator: Any) -> dict[str, str]:
    return DO_NOT_APPLY


SMALL = xLSTMForecaster(
    embedding_dim=8, num_heads=2, num_blocks=1, max_epochs=1, steps_per_epoch=1, season_length=4, val_size=0
)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([SMALL], expected_failed_checks=not_applicable)
def test_the_estimator_keeps_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)
