"""Readies Triton's interpreter for a test module that runs kernels on the CPU, or skips the module with the reason."""

import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


def require_interpreter() -> None:
    """To be called by a module before it imports Triton's kernels; conftest.py has turned the interpreter on."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled on this machine: pytest -m gpu", allow_module_level=True)
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    if not isinstance(interpreter.tl.zeros, interpreter.InterpretedFunction):
        pytest.skip("Triton was imported without its interpreter: set TRITON_INTERPRET=1", allow_module_level=True)
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: self.handle.data.item()

    # Triton 3.6 takes the int() of arrays of one element, which NumPy refuses from 2.4 on.
    interpreter._patch_lang_tensor = patch_with_index


@contextmanager
def planned_anew(passes: ModuleType) -> Iterator[None]:
    """Within it a module prepares its launches anew, and forgets them afterwards: a test has changed their plan."""
    caches = [value for value in vars(passes).values() if hasattr(value, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


class _InThreads:
    """A kernel that starts a thread for each program it is called for, and with the last one waits for all of them."""

    def __init__(self, kernel: Callable, builder: Any) -> None:
        self.__name__, self.__globals__, self.__signature__ = (
            kernel.__name__,
            kernel.__globals__,
            inspect.signature(kernel),
        )
        self.kernel, self.builder = kernel, builder
        self.threads: list[threading.Thread] = []
        self.errors: list[Exception] = []

    def __call__(self, **arguments: Any) -> None:
        thread = threading.Thread(target=self.run, args=(self.builder.grid_idx, arguments), daemon=True)
        thread.start()
        self.threads.append(thread)
        if len(self.threads) == math.prod(self.builder.grid_dim):
            for thread in self.threads:
                thread.join(timeout=60)
            if self.errors:
                raise self.errors[0]
            assert not any(thread.is_alive() for thread in self.threads), "programs still wait for each other"

    def run(self, place: tuple[int, int, int], arguments: dict[str, Any]) -> None:
        self.builder.grid_idx = place
        try:
            self.kernel(**arguments)
        except Exception as error:
            self.errors.append(error)


@contextmanager
def programs_side_by_side() -> Iterator[None]:
    """Within it the programs of a launch run in threads of their own, so that they can wait for each other."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch_lang, language = interpreter._patch_lang, SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    builder, launch, place = interpreter.interpreter_builder, interpreter.GridExecutor.__call__, threading.local()

    class Builder(type(builder)):
        grid_idx = property(lambda self: place.now, lambda self, now: setattr(place, "now", now))

    def launch_in_threads(executor: Any, *arguments: Any, **options: Any) -> None:
        executor.fn = _InThreads(executor.fn, builder)
        launch(executor, *arguments, **options)

    interval = sys.getswitchinterval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "__class__", Builder)
        patch.setattr(interpreter.GridExecutor, "__call__", launch_in_threads)
        # Once a launch instead of at every call inside of it, when other threads would see it half done.
        patch.setattr(interpreter, "_patch_lang", lambda fn: patch_lang(language) if type(fn) is _InThreads else None)
        sys.setswitchinterval(1e-5)  # who waits gives way soon
        try:
            yield
        finally:
            sys.setswitchinterval(interval)
