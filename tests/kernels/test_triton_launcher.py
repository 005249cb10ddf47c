"""Launches of Triton kernels by look-up, with a stand-in for a compiled kernel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton

from xlstm_kernels.ops import triton_launcher
from xlstm_kernels.ops.triton_launcher import Launch, launch


class Compiled:
    """Keeps what it is launched with."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def run(self, x: int, y: int, z: int, stream: int, function: str, metadata: str, *arguments: Any) -> None:
        assert (stream, function, metadata, *arguments[:3]) == (7, "function", "metadata", None, None, None)
        self.launches.append(((x, y, z), *arguments[3:]))

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launches.append(("hooked", grid, *arguments))


class Kernel:
    """Counts how often it was asked to choose a compiled kernel."""

    arg_names = ("x", "size", "FLAG", "TILE")

    def __init__(self) -> None:
        self.choices: list[dict[str, Any]] = []
        self.compiled = Compiled()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def choose(*arguments: Any, **constants: Any) -> Any:
            self.choices.append(constants)
            return self.compiled

        return choose


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(triton_launcher, "JITFunction", Kernel)
    monkeypatch.setattr(triton_launcher, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    driver = SimpleNamespace(get_current_stream=lambda device: 7)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return Kernel()


CONSTANTS = {"TILE": 16, "num_warps": 4, "FLAG": True}


def test_a_second_launch_passes_triton_by_with_the_constants_in_the_kernels_order(kernel: Kernel) -> None:
    x = torch.zeros(64)
    launch(kernel, (3,), (x, 48), CONSTANTS)
    assert kernel.choices == [CONSTANTS]
    launch(kernel, (3,), (x, 48), CONSTANTS)
    assert len(kernel.choices) == 1
    assert kernel.compiled.launches == [((3, 1, 1), x.data_ptr(), 48, True, 16)]


def test_a_prepared_launch_hands_on_where_tensors_lie_and_no_tensor_as_0(kernel: Kernel) -> None:
    run, x, y = Launch(kernel, (3, 2), (), CONSTANTS), torch.zeros(64), torch.zeros(64)
    for pair in [(x, None), (y, None)]:
        run(*pair)
    assert kernel.compiled.launches == [((3, 2, 1), y.data_ptr(), 0, True, 16)]


def test_a_prepared_launch_chooses_another_kernel_for_a_tensor_that_lies_elsewhere(kernel: Kernel) -> None:
    run, x = Launch(kernel, (3,), (48,), CONSTANTS), torch.zeros(64)
    for tensor in (x[1:], x, x[1:], x):
        run(tensor)
    assert len(kernel.choices) == 2
    assert [launched[1] for launched in kernel.compiled.launches] == [x[1:].data_ptr(), x.data_ptr()]


def test_whoever_listens_to_launches_hears_of_them(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    run, x = Launch(kernel, (3,), (48,), CONSTANTS), torch.zeros(64)
    run(x)
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", SimpleNamespace(calls=[print]))
    run(x)
    assert kernel.compiled.launches == [("hooked", (3, 1, 1), x.data_ptr(), 48, True, 16)]


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
