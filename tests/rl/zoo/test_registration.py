"""Handing our algorithm to RL Zoo, of which a stand-in is enough."""

import runpy
import sys
from types import ModuleType

import pytest

from xlstm_rl import xLSTMPPO
from xlstm_rl.zoo import HYPERPARAMETERS, register


@pytest.fixture
def zoo(monkeypatch):
    """RL Zoo's two names that we use: the table of algorithms, and ``train``, which keeps its command line."""
    package, training = ModuleType("rl_zoo3"), ModuleType("rl_zoo3.train")
    package.ALGOS, training.seen = {}, []
    training.train = lambda: training.seen.append(sys.argv[1:])
    monkeypatch.setitem(sys.modules, "rl_zoo3", package)
    monkeypatch.setitem(sys.modules, "rl_zoo3.train", training)
    return package, training


def test_the_algorithm_is_known_by_its_name(zoo):
    register()
    assert {"xlstm_ppo": xLSTMPPO} == zoo[0].ALGOS


def test_the_command_line_names_algorithm_settings_and_environments_before_what_is_given(zoo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xlstm_rl.zoo", "--env", "TMaze50-v0", "--seed", "1"])
    runpy.run_module("xlstm_rl.zoo", run_name="__main__")
    [words] = zoo[1].seen
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options == {
        "--algo": "xlstm_ppo",
        "--conf-file": str(HYPERPARAMETERS),
        "--gym-packages": "xlstm_rl",
        "--env": "TMaze50-v0",
        "--seed": "1",
    }
    assert {"xlstm_ppo": xLSTMPPO} == zoo[0].ALGOS


def test_without_rl_zoo_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match="pip install rl_zoo3"):
        register()
