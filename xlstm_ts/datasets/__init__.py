"""Small real series that ship with the package."""

from xlstm_ts.datasets.air_passengers import load_air_passengers

__all__ = ["load_air_passengers"]
