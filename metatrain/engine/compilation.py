"""Compile stages: trace each once to the operations of its forward and backward passes, then call inductor.

`make_fx` traces through vmap, grad and vjp, so that inductor gets a flat list of operations to fuse. It is called
without dynamo, whose guards cost a tenth of a millisecond per call: a stage is only called with inputs of the same
shapes. On CPUs a stage becomes one C++ program, and the programs of all stages are compiled at the same time. Compiled
code is cached on disk, where later runs and other workers find it.
"""

import fcntl
import functools
import gc
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from metatrain.engine.background import compiled_in_background, vector_instructions
from metatrain.engine.graph_passes import rewrite_for_cpu
from metatrain.engine.lowerings import register_lowerings
from metatrain.types import Context, Params
from tasks.io.files import open_unlinked
from tasks.plugins import describe_error
from tasks.store.cache import cache_root
from tasks.types import Tree

Stage = Callable[..., Tree]
LayOut = Callable[[Tensor], Tensor]
"""A function that puts a tensor into a memory format."""
Stages = TypeVar("Stages", bound=tuple[Stage, ...])

_MAX_CACHED = 64
"""Compiled sets of stages that a process keeps: a run needs one, or two if its last shard is smaller."""
_compiled: dict[Any, Any] = {}


class NotCompilable(ValueError):
    """A stage branches on values, or the compiler failed; the message names the remedy."""


def compile_stages(
    stages: Stages,
    lift: Callable[[Stage], Stage],
    lay_out: LayOut,
    precision: str,
    run: Callable[[Stages, Params, Tree, Context], Tree],
    params: Params,
    tasks: Tree,
    context: Context,
) -> Stages:
    """Return `stages`, each lifted by `lift` and compiled, for inputs shaped as `params` and `tasks`.

    They are traced by calling `run(stages, params, tasks, context)` once, whose results are thrown away: those of
    compiled code differ from them in the last bits. Inputs are put into the memory format of `lay_out`, and results
    are in it. Equal stages (the same functions, closed over equal values), shapes, formats and precisions are compiled
    once per process. NotCompilable: a stage branches on values, or the compiler failed.
    """
    shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in tree_leaves((params, tasks)))
    key = tuple(map(cache_key, stages)), lift, lay_out, shapes, precision, torch.get_num_threads()
    if key not in _compiled:
        if len(_compiled) >= _MAX_CACHED:
            _compiled.clear()
        if tree_leaves(tasks)[0].device.type == "cpu":
            vector_instructions()
        each = [_Compiled(lift(stage), lay_out, _name(stage)) for stage in stages]
        made: Any = getattr(type(stages), "_make", tuple)(each)
        with _explain_failure("a step"), compiled_in_background():
            run(made, params, tasks, context)
        for one in each:
            one.traced()
        # Each later collection of garbage would look at the half million objects of torch's compiler.
        gc.collect()
        gc.freeze()
        _compiled[key] = stages, made  # the stages are kept, so that no id is reused
    found: Stages = _compiled[key][1]
    return found


def cache_key(value: Any) -> Any:
    """Return a key that is equal for functions of the same code closed over equal values."""
    if isinstance(value, functools.partial):
        return cache_key(value.func), tuple(map(cache_key, value.args)), tuple(sorted(value.keywords.items()))
    if isinstance(value, types.MethodType):
        return cache_key(value.__func__), cache_key(value.__self__)
    if isinstance(value, types.FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or ())
        return value.__code__, tuple(map(cache_key, cells)), tuple(map(cache_key, value.__defaults__ or ()))
    if isinstance(value, tuple):
        return type(value), tuple(map(cache_key, value))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _name(stage: Stage) -> str:
    return getattr(getattr(stage, "func", stage), "__name__", "stage").strip("_")


class _Compiled:
    """Trace and compile one stage at its first call; all later calls have the same shapes.

    Until all stages are traced its graph is interpreted, since its program is being compiled meanwhile.
    """

    def __init__(self, function: Stage, lay_out: LayOut, name: str) -> None:
        self._function, self._lay_out, self._name = function, lay_out, name
        self._graph: Callable[..., list[Tensor]] | None = None
        self._program: Callable[..., list[Tensor]] | None = None
        self._used: list[int] = []
        self._result: TreeSpec

    def __call__(self, *arguments: Tree) -> Tree:
        leaves, layout = tree_flatten(arguments)
        if self._program is None:
            self._compile(leaves, layout)
        program = self._graph or self._program
        assert program is not None
        inputs = (self._lay_out(leaves[i]) for i in self._used)
        return tree_unflatten(program(*inputs), self._result)

    def traced(self) -> None:
        """Run the compiled program from now on. A stage that was not called is traced at its first call."""
        self._graph = None

    def _compile(self, leaves: list[Tensor], layout: TreeSpec) -> None:
        def flat(*given: Tensor) -> list[Tensor]:
            found, self._result = tree_flatten(self._function(*tree_unflatten(list(given), layout)))
            # The next stage was traced on inputs of this memory format, whatever the kernels prefer.
            return [self._lay_out(leaf) for leaf in found]

        folder = _code_folder()
        with _explain_failure(self._name), _garbage_kept():
            # Clones: a tensor passed twice would be traced as one input.
            leaves = [self._lay_out(leaf).clone() for leaf in leaves]
            graph = make_fx(flat)(*leaves)
            self._used = _drop_unused_inputs(graph)
            if leaves[0].device.type == "cpu":
                rewrite_for_cpu(graph)
            self._graph = self._program = graph
            if all(node.op != "call_function" for node in graph.graph.nodes):
                return  # it returns inputs: there is nothing to compile
            with _compile_lock(folder):
                self._program = _call_inductor(graph, [leaves[i] for i in self._used])


def _call_inductor(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., list[Tensor]]:
    from torch._inductor import standalone_compile

    caching: Any = torch.compiler.config
    settings = {"config_patches": _options(inputs[0].device)} if inputs else {}
    if inputs and inputs[0].device.type == "cpu":
        vector_instructions().result()
    with caching.patch(cache_key_tag=register_lowerings()):
        return standalone_compile(graph, inputs, dynamic_shapes="from_example_inputs", options=settings)


def _drop_unused_inputs(graph: fx.GraphModule) -> list[int]:
    """Remove unused inputs from `graph`, since each costs a guard; return the numbers of the inputs that stay."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    graph.graph.eliminate_dead_code()
    used = [number for number, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return used


def _options(device: torch.device) -> dict[str, Any]:
    """Return inductor's options, which are part of its cache key: hence the number of threads."""
    if device.type != "cpu":
        return {}
    # Reordering a convolution's memory only pays for large batches; here it costs a third. A C++ wrapper is compiled in
    # one piece with the kernels that it calls: without, each of a hundred kernels is a program of its own.
    return {"layout_optimization": False, "cpp.threads": torch.get_num_threads(), "cpp_wrapper": True}


def _code_folder() -> Path:
    """Create and return the folder of compiled code: TORCHINDUCTOR_CACHE_DIR, or the cache of this machine."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen in (None, default_cache_dir()):  # which torch sets itself when its compiler is imported
        chosen = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root(None) / "compiled")
    folder = Path(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _explain_failure(name: str) -> Iterator[None]:
    try:
        yield
    except NotCompilable:  # which stage it is has been said
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        reason = f"{name} of the inner loop cannot be compiled ({describe_error(error)})"
        raise NotCompilable(f"engine.compile: {reason}: set engine.compile to off") from error


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage meanwhile: looking for some among all of torch's objects takes a third of tracing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _compile_lock(folder: Path) -> Iterator[None]:
    """Let one process of this machine compile at a time; the others then find its code in the cache."""
    with open_unlinked(folder / "compiling.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
