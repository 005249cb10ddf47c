"""Finding the C core, and saying what is there."""

import pytest
import torch

from tests.kernels.recurrences import needs_core
from xlstm_kernels import backends, core, slstm
from xlstm_kernels.ops import triton_backend


@pytest.fixture(autouse=True)
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "available", lambda: False)


@needs_core
def test_backends_names_the_compiled_core_where_it_was_built() -> None:
    assert backends()["mlstm"][:2] == backends()["slstm"] == ("native", "compiled")


@needs_core
def test_a_core_built_from_other_sources_is_refused_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert core._find() is not None
    monkeypatch.setattr(core, "INTERFACE", core.INTERFACE + 1)
    with pytest.warns(UserWarning, match="install anew"):
        assert core._find() is None


def test_without_the_core_pytorch_serves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "load", lambda: None)
    gates, weight = torch.randn(2, 3, 4, 1, 5), torch.randn(4, 1, 5, 5)
    assert backends()["mlstm"] in (("native",), ("native", "triton"))
    assert backends()["slstm"] == ("native",)
    assert torch.equal(slstm(gates, weight)[0], slstm(gates, weight, backend="native")[0])
    with pytest.raises(ValueError, match="got 'compiled'"):
        slstm(gates, weight, backend="compiled")
