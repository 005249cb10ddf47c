"""Saving and loading: the same model comes back, an interrupted save spoils nothing, and damage is named."""

import json
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.kernels.stacks import STACKS, D, double, random_stack
from xlstm_kernels import pretrained, xLSTMBlockStack, xLSTMConfig

CONFIG = xLSTMConfig(embedding_dim=16, num_blocks=3, num_heads=2, slstm_at=(1,), ffn_factor=1.7)


@pytest.fixture
def stack() -> xLSTMBlockStack:
    torch.manual_seed(0)
    return xLSTMBlockStack(CONFIG).eval()


@pytest.fixture
def folder(stack: xLSTMBlockStack, tmp_path: Path) -> Path:
    stack.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same_weights(a: xLSTMBlockStack, b: xLSTMBlockStack) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert tensor.dtype == b.state_dict()[name].dtype
        assert torch.equal(tensor, b.state_dict()[name])


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_every_kind_of_stack_survives_the_way_to_the_disk_and_back(options: dict, tmp_path: Path) -> None:
    stack, x = random_stack(**options), double(2, 7, D)
    stack.save_pretrained(tmp_path)
    loaded = xLSTMBlockStack.from_pretrained(tmp_path)
    assert loaded.config == stack.config
    assert torch.equal(loaded(x)[0], stack(x)[0])


def test_a_loaded_stack_can_be_trained(folder: Path) -> None:
    loaded = xLSTMBlockStack.from_pretrained(folder)
    assert not loaded.training
    loaded(torch.randn(2, 3, 16))[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_saved_dtype_is_kept_unless_another_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    stack = xLSTMBlockStack(CONFIG).to(dtype)
    stack.save_pretrained(tmp_path)
    assert_same_weights(xLSTMBlockStack.from_pretrained(tmp_path), stack)
    converted = xLSTMBlockStack.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_weights(converted, stack.float())


def test_loading_moves_to_the_device_and_draws_no_random_numbers(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = xLSTMBlockStack.from_pretrained(str(folder), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}


def test_the_folder_holds_readable_json_and_weights_as_readable(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    description = json.loads((folder / "config.json").read_text())
    assert description.keys() == {"format_version", "library_version", "model", "config"}
    assert description["config"]["slstm_at"] == [1]
    config, weights = (stat.S_IMODE(file.stat().st_mode) for file in sorted(folder.iterdir()))
    assert config == weights


@pytest.mark.parametrize("fails", ["weights", "config"])
def test_an_interrupted_save_leaves_the_old_model(
    fails: str, stack: xLSTMBlockStack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half_and_stop(weights: dict, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *((pretrained, "save_file", write_half_and_stop) if fails == "weights" else (json, "dumps", stop))
    )
    with pytest.raises(KeyboardInterrupt):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=8, num_blocks=1)).save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_weights(xLSTMBlockStack.from_pretrained(folder), stack)


def test_saving_again_replaces_the_model(folder: Path) -> None:
    other = xLSTMBlockStack(xLSTMConfig(embedding_dim=8, num_blocks=1))
    other.save_pretrained(folder)
    assert_same_weights(xLSTMBlockStack.from_pretrained(folder), other)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder '/nowhere'; give one that save_pretrained wrote"):
        xLSTMBlockStack.from_pretrained("/nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}; give a folder that save_pretrained wrote"):
        xLSTMBlockStack.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 5, 4000])
def test_truncated_weights_are_named(size: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or incomplete .* save or download it again"):
        xLSTMBlockStack.from_pretrained(folder)


def test_foreign_weights_are_named_with_what_is_missing_and_unexpected(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.weight"] = weights.pop("norm.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing norm\.weight, unexpected encoder\.weight"):
        xLSTMBlockStack.from_pretrained(folder)


def test_many_foreign_names_are_abridged(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing blocks\.0.* and \d+ more, unexpected a;"):
        xLSTMBlockStack.from_pretrained(folder)


def test_shapes_that_disagree_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"] = torch.zeros(8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm.weight is \(8,\) instead of \(16,\)"):
        xLSTMBlockStack.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2, .* reads up to 1: upgrade xlstm-toolkit"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"model": "Other"}, "describes a Other, not a xLSTMBlockStack"),
        ({"config": {"embedding_dim": 16, "num_blocks": 3, "width": 1}}, r"fields \['width'\] that xLSTMConfig"),
        ({"config": {"embedding_dim": 16}}, "does not describe a xLSTMConfig: .*num_blocks"),
        ({"config": {"embedding_dim": "16", "num_blocks": 3}}, "does not describe a xLSTMConfig"),
        ({"config": {"embedding_dim": 0, "num_blocks": 3}}, "embedding_dim must be >= 1, got 0"),
        ({"config": None}, "was not written by save_pretrained: it has no 'config'"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(changes: dict, message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        xLSTMBlockStack.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_config_that_is_no_json_is_named(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is not JSON .*; save the model again"):
        xLSTMBlockStack.from_pretrained(folder)


def test_a_hub_id_without_the_hub_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"no folder 'user/name', .* pip install huggingface_hub"):
        xLSTMBlockStack.from_pretrained("user/name")


def test_a_hub_id_loads_what_the_hub_package_downloads(
    stack: xLSTMBlockStack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    hub = SimpleNamespace(snapshot_download=lambda name, **_: asked.append(name) or str(folder))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert_same_weights(xLSTMBlockStack.from_pretrained("user/name"), stack)
    assert asked == ["user/name"]
