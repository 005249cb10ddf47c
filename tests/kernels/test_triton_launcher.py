"""Launches of Triton kernels by look-up, with a stand-in for a compiled kernel."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from xlstm_kernels.ops import triton_launcher
from xlstm_kernels.ops.triton_launcher import launch


class Kernel:
    """Counts how often it was asked to choose a compiled kernel, and keeps what those were launched with."""

    arg_names = ("x", "size", "FLAG", "TILE")

    def __init__(self) -> None:
        self.choices: list[dict[str, Any]] = []
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def choose(*arguments: Any, **constants: Any) -> Any:
            self.choices.append(constants)
            return {(*grid, 1, 1)[:3]: lambda *arguments: self.launches.append(arguments)}

        return choose


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(triton_launcher, "JITFunction", Kernel)
    monkeypatch.setattr(triton_launcher, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Kernel()


CONSTANTS = {"TILE": 16, "num_warps": 4, "FLAG": True}


def test_a_second_launch_passes_triton_by_with_the_constants_in_the_kernels_order(kernel: Kernel) -> None:
    x = torch.zeros(64)
    launch(kernel, (3,), (x, 48), CONSTANTS)
    assert kernel.choices == [CONSTANTS]
    launch(kernel, (3,), (x, 48), CONSTANTS)
    assert len(kernel.choices) == 1
    assert kernel.launches == [(x, 48, True, 16)]


@pytest.mark.parametrize(
    "others",
    [
        pytest.param((torch.zeros(64).double(), 48), id="type"),
        pytest.param((torch.zeros(64)[1:], 48), id="alignment"),
        pytest.param((None, 48), id="nothing"),
        pytest.param((torch.zeros(64), 49), id="no multiple of 16"),
        pytest.param((torch.zeros(64), 1), id="one"),
        pytest.param((torch.zeros(64), 48 << 32), id="more than 32 bits"),
    ],
)
def test_what_another_kernel_may_be_compiled_for_is_told_apart(kernel: Kernel, others: tuple[Any, ...]) -> None:
    launch(kernel, (3,), (torch.zeros(64), 48), CONSTANTS)
    launch(kernel, (3,), others, CONSTANTS)
    assert len(kernel.choices) == 2


def test_a_multiple_of_16_is_as_good_as_another(kernel: Kernel) -> None:
    launch(kernel, (3,), (torch.zeros(64), 48), CONSTANTS)
    launch(kernel, (3,), (torch.ones(32), 160), CONSTANTS)
    assert len(kernel.choices) == 1


def test_other_constants_are_another_kernel(kernel: Kernel) -> None:
    for constants in (CONSTANTS, {**CONSTANTS, "TILE": 32}):
        launch(kernel, (3,), (torch.zeros(64), 48), constants)
    assert len(kernel.choices) == 2
