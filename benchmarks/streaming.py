"""Cost and exactness of updates, and of a backtest in one pass beside one that reads every history again.

python benchmarks/streaming.py --data DIR    # DIR holds ETTh1.csv; the oil temperature, two epochs of training
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xlstm_ts import xLSTMForecaster

FIRST, UPDATES, HORIZON = 2000, 5000, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETTh1.csv")
    torch.set_num_threads(1)
    values = pd.read_csv(parser.parse_args().data / "ETTh1.csv")["OT"].to_numpy()[: FIRST + UPDATES]
    forecaster = xLSTMForecaster(HORIZON, season_length=(24, 168), max_epochs=2, random_state=0).fit(values[:FIRST])
    measure_updates(forecaster, values)
    measure_backtest(forecaster, values[:3000])


def measure_updates(forecaster: xLSTMForecaster, values: np.ndarray) -> None:
    """Push the rows one by one, and compare with reading everything again now and then."""
    stream, seconds, worst = forecaster.stream(0), [], 0.0
    for step, value in enumerate(values[FIRST:], start=1):
        seconds.append(cpu_seconds(lambda value=value: stream.push(value)))
        if step % 1000 in (0, 13):
            again = forecaster.predict(values[: FIRST + step])["xLSTM"]
            unit = values[FIRST + step - 168 : FIRST + step].std()
            worst = max(worst, float((stream.forecast()["xLSTM"] - again).abs().max() / unit))
    early, late = (1e3 * float(np.median(part)) for part in (seconds[:500], seconds[-500:]))
    print(f"{UPDATES} rows pushed: {early:.2f} ms of CPU each at first, {late:.2f} ms at last (medians of 500)")
    print(f"largest difference from reading the whole history again: {worst:.1e} of the last week's deviation")
    forecasts = [cpu_seconds(stream.forecast) for _ in range(500)]
    frames = [pd.DataFrame({"unique_id": [0], "ds": [step], "y": [values[step]]}) for step in range(FIRST, FIRST + 500)]
    updates = [cpu_seconds(lambda frame=frame: forecaster.update(frame)) for frame in frames]
    print(
        f"a forecast takes {1e3 * np.median(forecasts):.2f} ms, update with a frame of one row "
        f"{1e3 * np.median(updates):.2f} ms"
    )


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of one call, no matter what else the machine does."""
    began = time.process_time()
    call()
    return time.process_time() - began


def measure_backtest(forecaster: xLSTMForecaster, values: np.ndarray, n_windows: int = 1000, naive: int = 50) -> None:
    """A cut-off at each of the last rows; the naive time is that of every 20th cut-off times 20."""
    began = time.perf_counter()
    found = forecaster.backtest(values, n_windows=n_windows, step=1)
    one_pass = time.perf_counter() - began
    cutoffs = found["cutoff"].unique()[:: n_windows // naive]
    began = time.perf_counter()
    again = [forecaster.predict(values[: cutoff + 1])["xLSTM"].to_numpy() for cutoff in cutoffs]
    whole = (time.perf_counter() - began) * n_windows / len(cutoffs)
    ours = found[found["cutoff"].isin(cutoffs)]["xLSTM"].to_numpy().reshape(len(cutoffs), -1)
    difference = np.abs(ours - again).max() / values.std()
    print(
        f"backtest of {n_windows} cut-offs over {len(values)} rows: {one_pass:.2f} s in one pass, {whole:.1f} s naive, "
        f"{whole / one_pass:.0f} times; largest difference {difference:.1e} deviations"
    )


if __name__ == "__main__":
    main()
