"""What the distribution declares against what the repository holds."""

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_declared_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in declared}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names - pinned - {"xlstm-toolkit", "triton"} == set()
