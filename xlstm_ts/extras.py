"""What to install where a library is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named_extra() -> Iterator[None]:
    """Name the cure for a library that only the extra ``ts`` brings; a context, or a decorator.

    Raises:
        ModuleNotFoundError: what is missing, and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error}: pip install "xlstm-toolkit[ts]" brings it', name=error.name) from error
