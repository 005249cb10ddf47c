"""What the distribution declares against what the repository holds."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATHS = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


def test_every_declared_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in declared}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names - pinned - {"xlstm-toolkit", "triton"} == set()


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("pandas", "import xlstm_ts"),
        ("sklearn", "import xlstm_ts.cli"),
        ("pytorch_forecasting", "from xlstm_ts import xLSTMModel"),
        ("lightning", "from xlstm_ts import xLSTMForecaster; xLSTMForecaster().fit([[1.0, 2.0, 3.0]])"),
        (
            "matplotlib",
            "from xlstm_ts.plotting import plot_half_lives; import numpy; plot_half_lives(numpy.ones((1, 2)))",
        ),
        ("stable_baselines3", "import xlstm_rl"),
        ("gymnasium", "import xlstm_rl"),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(missing: str, use: str) -> None:
    extra = re.search(r"xlstm_(\w+)", use)[1]
    script = f"import sys\nsys.modules[{missing!r}] = None\n{use}"  # None: its import raises ModuleNotFoundError

    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=PATHS, capture_output=True, text=True)

    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError")
    assert missing in last
    assert f'pip install "xlstm-toolkit[{extra}]"' in last
