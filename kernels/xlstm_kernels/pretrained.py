"""Models as folders: the weights in safetensors beside a JSON file that says what they are the weights of.

A folder holds ``model.safetensors`` and ``config.json``; nothing in it is executed when it is read.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")


def save_model(model: nn.Module, config: Any, folder: str | Path) -> None:
    """Write the model and its config (a dataclass of JSON values) to ``folder``, which is made where it is missing.

    A save that is interrupted while it writes leaves the folder as it was: files get their names when all are complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    description = {
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "model": type(model).__name__,
        "config": asdict(config),
    }
    # The process id keeps two processes that save at once from writing into one file.
    staged = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    try:
        save_file(weights, staged[WEIGHTS_FILE], metadata={"format": "pt"})
        staged[CONFIG_FILE].write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        # safetensors makes its file private to the user; the weights are to be as readable as the config.
        staged[WEIGHTS_FILE].chmod(staged[CONFIG_FILE].stat().st_mode)
        for name, file in staged.items():
            file.replace(folder / name)
    finally:
        for file in staged.values():
            file.unlink(missing_ok=True)


def load_model(
    model_class: type[M],
    config_class: type[C],
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> M:
    """The model that ``save_model`` wrote: ``model_class(config)`` with its weights, in evaluation mode.

    Args:
        model_class: class of the model, called with a config alone.
        config_class: dataclass of the config.
        source: a folder, or the id ``user/name`` of a model on the Hugging Face hub (needs ``huggingface_hub``).
        device: where the weights go; the CPU unless told.
        dtype: what the weights are converted to; None keeps what was saved.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, of a newer format or of another model; or the hub cannot be reached from here.
    """
    folder = find_folder(source)
    config = read_config(folder / CONFIG_FILE, model_class.__name__, config_class)
    weights = read_weights(folder / WEIGHTS_FILE, device)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    return assemble(model_class, config, weights, origin=str(folder / WEIGHTS_FILE)).eval()


def assemble(model_class: type[M], config: C, weights: Mapping[str, Tensor], *, origin: str) -> M:
    """``model_class(config)`` around the given tensors, whose names and shapes must be the model's.

    Raises:
        ValueError: names are missing, unexpected, or of another shape.
    """
    with torch.device("meta"):  # neither memory nor random numbers go into weights that are replaced
        model = model_class(config)
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{origin} does not hold the weights of this {model_class.__name__}: missing {abridge(missing)}, "
            f"unexpected {abridge(unexpected)}; take the file that was saved with the config, or convert it"
        )
    misfits = [
        f"{name} is {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name].shape
    ]
    if misfits:
        raise ValueError(f"{origin} does not fit its config, which was changed or is another model's: {misfits[0]}")
    model.load_state_dict(weights, assign=True)
    return model


def find_folder(source: str | Path) -> Path:
    """The folder itself, or the local copy of a model on the hub."""
    if Path(source).is_dir():
        return Path(source)
    if not (isinstance(source, str) and HUB_ID.fullmatch(source)):
        raise FileNotFoundError(f"there is no folder {str(source)!r}; give one that save_pretrained wrote")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"there is no folder {source!r}, and to look for it on the Hugging Face hub a package is missing: "
            "pip install huggingface_hub"
        ) from None
    return Path(snapshot_download(source, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))


def read_config(path: Path, model_name: str, config_class: type[C]) -> C:
    """The config that a ``config.json`` describes, after checks of all that could make it another model's."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} has no {path.name}; give a folder that save_pretrained wrote") from None
    except ValueError as error:  # of the JSON or of the encoding
        raise ValueError(f"{path} is not JSON ({error}); save the model again") from error
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise ValueError(f"{path} was not written by save_pretrained: it has no 'config'; convert the model instead")
    version = description.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}, written by xlstm-toolkit {description.get('library_version')}; "
            f"this installation reads up to {FORMAT_VERSION}: upgrade xlstm-toolkit"
        )
    if description.get("model") != model_name:
        raise ValueError(f"{path} describes a {description.get('model')}, not a {model_name}; load it with its class")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in description["config"].items()}
    known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"{path} has fields {unknown} that {config_class.__name__} does not know: upgrade xlstm-toolkit"
        )
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a {config_class.__name__}: {error}") from error


def read_weights(path: Path, device: torch.device | str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, in memory of their own.

    In the file they lie one behind the other. Where that leaves them unaligned, BLAS sums in another order, and a
    loaded model would differ from the saved one in the last bit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; give a folder that save_pretrained wrote")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); save or download it again") from error
    return {name: tensor.to(device or "cpu", copy=True) for name, tensor in tensors.items()}


def abridge(names: Sequence[str], *, limit: int = 4) -> str:
    """The first names and how many more there are."""
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def library_version() -> str:
    """The installed version; sources that run uninstalled have none."""
    try:
        return metadata.version("xlstm-toolkit")
    except metadata.PackageNotFoundError:
        return "uninstalled"
