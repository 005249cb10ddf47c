"""pytorch-forecasting's own contract checks, and what importing the model costs those who do not use it."""

import os
import subprocess
import sys

import pytest
from pytorch_forecasting.utils import check_estimator

from xlstm_ts import xLSTMModel


def test_importing_xlstm_ts_leaves_heavy_libraries_alone() -> None:
    code = "import sys, xlstm_ts; print(sorted({'lightning', 'pytorch_forecasting'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.filterwarnings("ignore")
def test_pytorch_forecastings_own_checks_pass() -> None:
    results = check_estimator(xLSTMModel, verbose=False)
    assert len(results) > 30
    assert {name: result for name, result in results.items() if result != "PASSED"} == {}
