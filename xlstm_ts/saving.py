"""Forecasters on disk: weights and states in safetensors, everything else in JSON, no pickle."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.embeddings import CovariateSizes
from xlstm_ts.frames import Columns
from xlstm_ts.memory import Memory
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.panel_memory import PanelMemory
from xlstm_ts.rows import Rows

FORMAT = 1
TENSORS, SETTINGS = "forecaster.safetensors", "forecaster.json"


def save_forecaster(
    folder: str | Path,
    *,
    parameters: dict[str, Any],
    network: ForecastNetwork,
    encoder: CovariateEncoder,
    remembered: PanelMemory,
    losses: dict[str, float],
) -> None:
    """Write both files; an interrupted save leaves what was there.

    Raises:
        TypeError: a parameter is nothing that JSON holds; the names of the series are neither text nor integers.
    """
    settings = {
        "format": FORMAT,
        "parameters": parameters,
        "network": dataclasses.asdict(network.config),
        "columns": dataclasses.asdict(encoder.columns),
        "moments": encoder.moments,
        "codes": {name: list(codes.items()) for name, codes in encoder.codes.items()},
        "ids": [_plain(name) for name in remembered.ids],
        "last_ds": _times_to_json(remembered.last_ds),
        "frequency": remembered.frequency,
        "losses": losses,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as draft:
        save_file(_tensors(network, remembered.memory), Path(draft) / TENSORS)
        (Path(draft) / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        for name in (TENSORS, SETTINGS):
            os.replace(Path(draft) / name, folder / name)


def load_forecaster(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], ForecastNetwork, CovariateEncoder, PanelMemory, dict[str, float]]:
    """What ``save_forecaster`` wrote: parameters, network, encoder, remembered series, losses.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the files are of another format.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{folder / SETTINGS} has format {settings.get('format')!r}, this version reads {FORMAT}: "
            "load it with the version that wrote it"
        )
    tensors = load_file(folder / TENSORS, device=str(device))
    network = ForecastNetwork(_network_config(settings["network"])).to(device).eval()
    network.load_state_dict(_part(tensors, "network."))
    columns = Columns(**{name: _tuples(value) for name, value in settings["columns"].items()})
    moments = {name: (mean, deviation) for name, (mean, deviation) in settings["moments"].items()}
    codes = {name: dict(pairs) for name, pairs in settings["codes"].items()}
    encoder = CovariateEncoder(columns, moments, codes)
    ids = np.array(settings["ids"], dtype=None if _all_integers(settings["ids"]) else object)
    last_ds = _times_from_json(settings["last_ds"])
    remembered = PanelMemory(ids, last_ds, settings["frequency"], _memory(_part(tensors, "memory.")))
    return _with_tuples(settings["parameters"]), network, encoder, remembered, settings["losses"]


def _tensors(network: ForecastNetwork, memory: Memory) -> dict[str, Tensor]:
    buffer = {f"memory.{name}": field for name, field in memory.buffer._asdict().items()}
    phases = torch.stack(memory.phases)  # (P, N, numbers of a state)
    found = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    found |= {**buffer, "memory.hidden": memory.hidden, "memory.phases": phases}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _memory(tensors: dict[str, Tensor]) -> Memory:
    rows = Rows(*(tensors[name] for name in Rows._fields))
    return Memory(rows, tensors["hidden"], tuple(state.clone() for state in tensors["phases"]))


def _network_config(settings: dict[str, Any]) -> NetworkConfig:
    kinds = {kind: CovariateSizes(**_with_tuples(settings[kind])) for kind in ("static", "known", "past")}
    return NetworkConfig(**{**_with_tuples(settings), **kinds})


def _with_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in settings.items()}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name


def _all_integers(names: list[Any]) -> bool:
    return all(isinstance(name, int) for name in names)


def _times_to_json(times: list[Any]) -> dict[str, Any]:
    """Points in time of one kind, as text or integers, with what is needed to read them back."""
    first = times[0]
    if isinstance(first, pd.Period):
        return {"kind": "period", "freq": first.freqstr, "at": [str(time) for time in times]}
    if isinstance(first, pd.Timestamp):
        zone = None if first.tz is None else str(first.tz)
        return {"kind": "timestamp", "zone": zone, "at": [time.tz_localize(None).isoformat() for time in times]}
    return {"kind": "integer", "at": [int(time) for time in times]}


def _times_from_json(settings: dict[str, Any]) -> list[Any]:
    kind, times = settings["kind"], settings["at"]
    if kind == "period":
        return [pd.Period(time, freq=settings["freq"]) for time in times]
    if kind == "timestamp":
        return [pd.Timestamp(time).tz_localize(settings["zone"]) for time in times]
    return list(times)
