"""Compile inductor's C++ programs in the background, several at a time, and what has to be known before the first.

Inductor writes a stage's kernels and the code that calls them into one C++ file, and loads it at once, so that it would
wait for g++ before the next stage is traced. Here loading is put off until a program is called.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class _Program:
    """A C++ function that may still be compiled: its first call waits."""

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self._load = load
        self._function: Callable[..., Any] | None = None

    def wait(self) -> Callable[..., Any]:
        """Return the function, once it is compiled. Raises what inductor raises when g++ fails."""
        if self._function is None:
            self._function = self._load()
        return self._function

    def __call__(self, *arguments: Any) -> Any:
        return self.wait()(*arguments)


@functools.cache
def vector_instructions() -> Future[Any]:
    """Start finding out, once per process, which vector instructions g++ and this processor have.

    Inductor compiles a small program for each kind before its first kernel, four seconds in which tracing can go on.
    """

    def find() -> Any:
        from torch._inductor.cpu_vec_isa import pick_vec_isa  # which keeps the answer

        return pick_vec_isa()

    pool = ThreadPoolExecutor(1, thread_name_prefix="instructions")
    found = pool.submit(find)
    pool.shutdown(wait=False)
    return found


@contextmanager
def compiled_in_background() -> Iterator[None]:
    """Have g++ called by threads, as many as this machine has cores; wait for all of them at the end."""
    from torch._inductor import codecache

    programs: Any = codecache.CppWrapperCodeCache
    pending: list[_Program] = []
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compile") as pool:

        def load_later(**code: Any) -> _Program:
            pending.append(_Program(programs.load_pybinding_async(**code, submit_fn=pool.submit)))
            return pending[-1]

        # Inductor's own pool compiles single kernels only, and there is no public way to give it programs.
        load_at_once = programs.__dict__["load_pybinding"]
        programs.load_pybinding = load_later
        try:
            yield
        finally:
            programs.load_pybinding = load_at_once
        for program in pending:
            program.wait()
