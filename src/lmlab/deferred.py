"""Modules that Lightning and torch import on sight and a run seldom needs: they wait for their first use.

Importing this puts stand-ins in place of the package `torchmetrics` (it imports transformers, scipy and matplotlib
where it finds them), of its plots, and of `torch._dynamo` (the compiler; the first optimizer imports it too). They took
3 s of the 5 before a first step. A stand-in is the module itself, not yet executed. It answers the few names that are
asked for on the way; whatever else anybody asks of it executes it first, in place, so that no code can tell. What has
been imported already is left alone.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import FunctionType, ModuleType
from typing import Any

import torch

BOOTSTRAP = "<frozen importlib._bootstrap>"
_executing = threading.RLock()


class Deferred(ModuleType):
    """A module that executes when it is asked for what it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        path = self.__spec__.submodule_search_locations
        # `from package import name` asks where the package is. So does the import of a submodule, from here, and that
        # has to find the package executed.
        if name == "__path__" and (path is None or sys._getframe(1).f_code.co_filename != BOOTSTRAP):
            if path is None:
                raise AttributeError(f"module {self.__name__!r} is no package")
            return path
        execute(self)
        if name in vars(self):
            return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        getattr(self, "__all__", None)
        return list(super().__dir__())


def execute(module: ModuleType) -> ModuleType:
    """The module, executed."""
    # Other threads wait; the executing one, which comes here in circular imports, sees what there is so far.
    with _executing:
        if (begin := vars(module).pop("_begin", None)) is not None:
            begin(module)
    return module


def place(name: str, spec: ModuleSpec | None, undo: Callable[[], None] | None = None, **stand_ins: Any) -> Any:
    """The stand-in of a module, where `import` finds it. None where the module is loaded already, or not installed.

    stand_ins: what it answers until it is executed. undo: called just before.
    """
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    path = vars(module).pop("__path__", None)

    # No longer a Deferred when it is done, and shapes are checked then, too.
    def begin(module: ModuleType) -> None:
        if undo is not None:
            undo()
        for key in stand_ins:
            vars(module).pop(key, None)
        if path is not None:
            module.__path__ = path
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        module.__class__ = ModuleType

    vars(module).update(stand_ins, _begin=begin)
    module.__class__ = Deferred
    sys.modules[name] = module
    bind(module)
    return module


def bind(module: ModuleType) -> None:
    """As an attribute of its package, where that has been imported."""
    parent, _, leaf = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], leaf, module)


def defer_torchmetrics() -> None:
    """`Metric` and `MetricCollection`, which Lightning takes from the package, without all the other metrics."""
    if "torchmetrics" in sys.modules or (spec := find_spec("torchmetrics")) is None:
        return
    path = list(spec.submodule_search_locations or ())
    plots = "torchmetrics.utilities.plot"

    def plot(*args: Any, **kwargs: Any) -> Any:
        return execute(sys.modules[plots]).plot_single_or_multi_val(*args, **kwargs)

    plotting = place(
        plots,
        PathFinder.find_spec(plots, [f"{folder}/utilities" for folder in path]),
        plot_single_or_multi_val=plot,
        # Annotations only.
        _AX_TYPE=object,
        _PLOT_OUT_TYPE=tuple[object, object],
    )
    package = place(
        "torchmetrics", spec, _logger=logging.getLogger("torchmetrics"), __version__=metadata.version("torchmetrics")
    )
    # The two need no more of their package than its place.
    package.__path__ = path
    try:
        # In this order: metric and utilities import each other.
        importlib.import_module("torchmetrics.utilities")
        found = {
            "Metric": importlib.import_module("torchmetrics.metric").Metric,
            "MetricCollection": importlib.import_module("torchmetrics.collections").MetricCollection,
        }
    except (ImportError, AttributeError):
        # Another release, built in another way: it is imported whole.
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
        return
    if type(package) is Deferred:
        # Kept when it executes: it puts the same two there.
        del package.__path__
        vars(package).update(found)
    if plotting is not None:
        bind(plotting)


class _Compiled(type):
    """Nothing has been compiled before there is a compiler."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return (real := _real()) is not None and isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return (real := _real()) is not None and issubclass(subclass, real)


def _real() -> type | None:
    found = vars(sys.modules["torch._dynamo"]).get("OptimizedModule") if "torch._dynamo" in sys.modules else None
    return None if found is OptimizedModule else found


class OptimizedModule(metaclass=_Compiled):
    """Lightning asks whether a module is one, and keeps this class to ask with."""


def defer_dynamo() -> None:
    """What Lightning's import and an optimizer's step take from the compiler, without the compiler."""
    if "torch._dynamo" in sys.modules:
        return
    undisabled: list[Any] = []

    def disable(
        function: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True
    ) -> Any:
        if isinstance(function, FunctionType) and not wrapping:
            # torch's own way (torch._compile): it keeps the answer in the function's `__dynamo_disable`.
            undisabled.append(function)
            return function
        if not isinstance(function, FunctionType) or not recursive:
            return execute(module).disable(function, recursive, reason=reason, wrapping=wrapping)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal real
            if real is None and type(module) is not Deferred:
                real = module.disable(function, recursive, reason=reason, wrapping=wrapping)
            return (function if real is None else real)(*args, **kwargs)

        real = None
        # How the compiler knows such a function when it meets one.
        call._torchdynamo_disable, call._torchdynamo_disable_msg = True, reason
        call._torchdynamo_orig_callable = function
        return call

    def undo() -> None:
        for function in undisabled:
            vars(function).pop("__dynamo_disable", None)

    module = place(
        "torch._dynamo",
        find_spec("torch._dynamo"),
        undo,
        OptimizedModule=OptimizedModule,
        disable=disable,
        # For the compiler alone; an optimizer's step asks for two.
        graph_break=lambda *args, **kwargs: None,
    )


assert torch.Tensor  # loaded first: its parts wait, it does not
defer_torchmetrics()
defer_dynamo()
