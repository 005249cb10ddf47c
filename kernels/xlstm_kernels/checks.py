"""What modules, configs and ops check of their options: each raises ValueError with the value and the cure."""

import math
from collections.abc import Collection
from numbers import Integral, Real


def check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    """Raise unless ``divisor`` is a positive divisor of ``whole``."""
    if divisor < 1 or whole < 1 or whole % divisor:
        raise ValueError(f"{name} must divide {whole_name} {whole}, got {divisor}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of the given names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value}")


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be > 0 and finite, got {value!r}")


def check_boolean(name: str, value: object) -> None:
    """Raise unless ``value`` is True or False: text such as "false" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
