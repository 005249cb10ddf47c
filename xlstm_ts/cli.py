"""The command line ``xlstm-ts``: fit, predict, update, backtest and plot on CSV files, or Parquet with pyarrow.

xlstm-ts fit sales.csv --model model/ --horizon 28
xlstm-ts predict --model model/ --level 50 90 --output forecast.csv
xlstm-ts update new.csv --model model/

Exit codes: 0 done, 1 the data or the model is not as it should be (the reason is on stderr), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from xlstm_ts.forecaster import xLSTMForecaster
from xlstm_ts.inputs import to_long

DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"xlstm-ts {options.command}: {error}\n")
        return FAILED
    return DONE


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    whole = argparse.ArgumentParser(
        prog="xlstm-ts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)

    fit = commands.add_parser("fit", help="train on a file and write a model folder")
    fit.add_argument("data", type=Path, help="long file: one row for every series and point in time")
    fit.add_argument("--horizon", type=int, required=True, help="steps ahead")
    for kind in ("static", "known", "past"):
        fit.add_argument(f"--{kind}", nargs="+", default=(), metavar="COLUMN", help=f"{kind} covariates")
    for name in ("id-col", "ds-col", "y-col"):
        fit.add_argument(f"--{name}", default=argparse.SUPPRESS)
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--set", type=json.loads, default={}, help="more parameters, as JSON: '{\"max_epochs\": 5}'")
    fit.add_argument("--quiet", action="store_true", help="no progress bar")

    predict = commands.add_parser("predict", help="forecast what follows the rows that were read")
    predict.add_argument("--data", type=Path, help="other series to continue")
    predict.add_argument("--horizon", type=int, help="steps ahead; as trained unless told")
    predict.add_argument("--future", type=Path, help="known covariates of the steps ahead")

    update = commands.add_parser("update", help="read new rows into the model's memory")
    update.add_argument("data", type=Path)

    backtest = commands.add_parser("backtest", help="forecast the end of known series from earlier cut-offs")
    backtest.add_argument("data", type=Path)
    backtest.add_argument("--windows", type=int, default=1, help="cut-offs of each series")
    backtest.add_argument("--step", type=int, help="rows between them; the horizon unless told")

    plot = commands.add_parser("plot", help="draw a fan chart of one series")
    plot.add_argument("data", type=Path, help="series to continue")
    plot.add_argument("--future", type=Path, help="known covariates of the steps ahead")
    plot.add_argument("--series", help="which one; the first unless told")
    plot.add_argument("--last", type=int, help="rows of history to draw")

    for command, run in zip((fit, predict, update, backtest, plot), COMMANDS, strict=True):
        command.add_argument("--model", type=Path, required=True, help="the model's folder")
        command.set_defaults(run=run)
    for command in (predict, backtest, plot):
        command.add_argument("--level", type=float, nargs="+", default=[80], help="intervals in percent")
        command.add_argument("--output", type=Path, help="where to write; the terminal unless told")
    return whole


def run_fit(options: argparse.Namespace) -> None:
    """Train and save."""
    names = {name: getattr(options, name) for name in ("id_col", "ds_col", "y_col") if name in options}
    forecaster = xLSTMForecaster(
        options.horizon,
        static=tuple(options.static),
        known=tuple(options.known),
        past=tuple(options.past),
        random_state=options.seed,
        progress_bar=not options.quiet,
        **names,
        **options.set,
    )
    forecaster.fit(read_file(options.data, forecaster.ds_col)).save(options.model)
    sys.stdout.write(f"trained on {len(forecaster.panel_.ids)} series: {options.model}\n")


def run_predict(options: argparse.Namespace) -> None:
    """Forecast and write the frame."""
    forecaster = xLSTMForecaster.load(options.model)
    data, future = (path and read_file(path, forecaster.ds_col) for path in (options.data, options.future))
    forecast = forecaster.predict(data, horizon=options.horizon, level=options.level, future=future)
    write_file(forecast, options.output)


def run_update(options: argparse.Namespace) -> None:
    """Read new rows and save the memory that follows."""
    forecaster = xLSTMForecaster.load(options.model)
    rows = read_file(options.data, forecaster.ds_col)
    forecaster.update(rows).save(options.model)
    sys.stdout.write(f"read {len(rows)} rows: {options.model}\n")


def run_backtest(options: argparse.Namespace) -> None:
    """Forecast from earlier cut-offs and write the frame, and a summary where it went to a file."""
    forecaster = xLSTMForecaster.load(options.model)
    frame = read_file(options.data, forecaster.ds_col)
    forecast = forecaster.backtest(frame, n_windows=options.windows, step=options.step, level=options.level)
    write_file(forecast, options.output)
    if options.output:
        error = (forecast[forecaster.y_col] - forecast["xLSTM"]).abs().mean()
        sys.stdout.write(f"{len(forecast)} forecasts, mean absolute error {error:.4g}: {options.output}\n")


def run_plot(options: argparse.Namespace) -> None:
    """Draw the history and the forecast of one series."""
    if options.output is None:
        raise ValueError("plot needs --output, the picture to write")
    from matplotlib import use

    from xlstm_ts.plotting import plot_forecast

    use("Agg")
    forecaster = xLSTMForecaster.load(options.model)
    frame = to_long(read_file(options.data, forecaster.ds_col), forecaster._columns())
    name = frame[forecaster.id_col].iloc[0] if options.series is None else options.series
    rows = frame[frame[forecaster.id_col].astype(str) == str(name)]
    if rows.empty:
        raise ValueError(f"{options.data} has no series {name!r}")
    future = options.future and read_file(options.future, forecaster.ds_col)
    forecast = forecaster.predict(rows, level=options.level, future=future)
    axes = plot_forecast(
        rows, forecast, last=options.last, id_col=forecaster.id_col, ds_col=forecaster.ds_col, y_col=forecaster.y_col
    )
    axes.figure.savefig(options.output, dpi=150)  # type: ignore[union-attr]


COMMANDS = (run_fit, run_predict, run_update, run_backtest, run_plot)


def read_file(path: Path, ds_col: str) -> pd.DataFrame:
    """A frame from a CSV or Parquet file; times that are text become timestamps.

    Raises:
        ValueError: the file is of another kind, or a time is none.
    """
    frame = pd.read_csv(path) if file_kind(path) == ".csv" else pd.read_parquet(path)
    if ds_col in frame and not (
        pd.api.types.is_integer_dtype(frame[ds_col]) or pd.api.types.is_datetime64_any_dtype(frame[ds_col])
    ):
        try:
            frame[ds_col] = pd.to_datetime(frame[ds_col])
        except ValueError as error:
            reason = str(error).partition(".")[0]
            raise ValueError(
                f"column {ds_col!r} of {path} holds no times ({reason}): write them like 2024-01-31 or "
                "2024-01-31 15:00, all in one zone, or use Parquet"
            ) from error
    return frame


def file_kind(path: Path) -> str:
    """``.csv`` or ``.parquet``, by the path's ending; raises ValueError for others."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".csv", ".parquet"):
        raise ValueError(f"{path} must be a .csv, .csv.gz or .parquet file")
    return kind


def write_file(frame: pd.DataFrame, path: Path | None) -> None:
    """Write a frame as CSV or Parquet, by the path's ending; as CSV to the terminal without a path."""
    if path is None:
        frame.to_csv(sys.stdout, index=False)
    elif file_kind(path) == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


if __name__ == "__main__":
    sys.exit(main())
