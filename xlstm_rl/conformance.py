"""Runs Stable-Baselines3's own tests of PPO against xLSTMPPO: ``python -m xlstm_rl.conformance --sb3 PATH``.

The tests are copied from a checkout of DLR-RM/stable-baselines3 to a scratch folder, where ``PPO`` is another name for
ours, and only those that are about it run. One test brings a policy of its own, made for a PPO without memory; a policy
with memory stands in for it, with the same constant value.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONFTEST = '''"""PPO is xLSTMPPO, and what is not about PPO is left out."""

import inspect
import sys

import stable_baselines3
import torch as th
import xlstm_rl

OTHERS = ("A2C", "DDPG", "DQN", "SAC", "TD3")


class PPO(xlstm_rl.xLSTMPPO):
    """Ours by the name that tests look for in messages."""


class ConstantValue(xlstm_rl.MlpPolicy):
    """In place of test_gae's policy: acts as it learns, and values everything alike."""

    constant_value = 0.0

    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return step._replace(values=th.full_like(step.values, self.constant_value))


stable_baselines3.PPO = PPO
sys.modules["stable_baselines3.ppo"].PPO = PPO


def pytest_collection_modifyitems(config, items):
    about = [item for item in items if is_about_ppo(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in about])
    items[:] = about


def is_about_ppo(item):
    named = item.name.partition("[")[2]
    return "PPO" in named or (not any(o in named for o in OTHERS) and "PPO" in inspect.getsource(item.function))


def pytest_collection_finish(session):
    for module in {item.module for item in session.items if item.module.__name__.endswith("test_gae")}:
        module.CustomPolicy = ConstantValue
'''


def prepare(sb3: Path, scratch: Path) -> Path:
    """Copy the tests of a checkout to ``scratch`` and put the swap beside them; returns their folder.

    Raises:
        ValueError: no checkout of Stable-Baselines3.
    """
    source = sb3 / "tests"
    if not (source / "test_gae.py").is_file():
        raise ValueError(f"{sb3} has no tests/test_gae.py; pass a checkout of DLR-RM/stable-baselines3")
    tests = scratch / "tests"
    tests.mkdir()
    shutil.copy(sb3 / "pyproject.toml", scratch)  # its settings of pytest
    for path in source.glob("*.py"):
        # The other files need what the tests of PPO do not, such as Atari's games
        if not path.name.startswith("test_") or "PPO" in path.read_text():
            shutil.copy(path, tests)
    (tests / "conftest.py").write_text(CONFTEST)
    return tests


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_rl.conformance", description=__doc__)
    parser.add_argument("--sb3", type=Path, required=True, help="a checkout of DLR-RM/stable-baselines3")
    options, pytest_options = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        tests = prepare(options.sb3, Path(scratch))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), *pytest_options]
        return subprocess.run(command, cwd=scratch, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
