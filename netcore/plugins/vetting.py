"""Checks a plugin before it is let in: its hooks against the specification, its offers against the contracts.

pluggy lets a misspelt hook pass until somebody calls `check_pending`, registers half of a plugin
whose second hook has a wrong signature, and returns an async implementation's coroutine un-awaited.
So every plugin is first registered with a manager of its own, where all of that is looked at.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import pluggy

from netcore.config import AdapterConfig
from netcore.errors import PluginError
from netcore.plugins import spec
from netcore.plugins.registry import ADAPTERS, BACKPRESSURE, FILTERS, GROUPS, SCALING, Group

__all__ = ["HOOKS", "vet"]

HOOKS: Final = tuple(name for name in vars(spec) if name.startswith("netcore_"))
"""Every hook, in the order of the specification."""


def vet(
    plugin: object, name: str
) -> tuple[Mapping[str, pluggy.HookImpl], Mapping[str, Mapping[str, type[Any]]]]:
    """Check a plugin and ask it what it offers.

    Args:
        plugin: the module or object.
        name: what the plugin is called.

    Returns:
        Its implementation of each hook, and what each offering hook offers, by name.

    Raises:
        PluginError: the plugin is broken; says where and how to mend it.
        Exception: whatever an offering hook of it raised.
    """
    if isinstance(plugin, type):
        raise PluginError(f"{plugin!r} is a class; a plugin is a module or an object: call the class")
    hooks = _hooks(plugin, name)
    return hooks, MappingProxyType({group.hook: _offers(group, hooks) for group in GROUPS})


def _hooks(plugin: object, name: str) -> Mapping[str, pluggy.HookImpl]:
    trial = pluggy.PluginManager(spec.PROJECT)
    trial.add_hookspecs(spec)
    try:
        trial.register(plugin, name)
        trial.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_validation(trial, error)) from error
    found: dict[str, pluggy.HookImpl] = {}
    for hook in HOOKS:
        implementations = getattr(trial.hook, hook).get_hookimpls()
        if implementations:
            found[hook] = implementations[0]
            _check_implementation(hook, implementations[0])
            if len(implementations) > 1:
                raise PluginError(f"hook {hook!r} is implemented twice in one plugin")
        elif callable(getattr(plugin, hook, None)):
            raise PluginError(f"hook {hook!r} is not marked: put @netcore.hookimpl above it")
    if not found:
        raise PluginError(
            f"implements no hook: define one of {', '.join(HOOKS[:4])}, ... under @netcore.hookimpl"
        )
    return MappingProxyType(found)


def _check_implementation(hook: str, implementation: pluggy.HookImpl) -> None:
    function = implementation.function
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"hook {hook!r} is async, but hooks are called and not awaited: use a plain def")
    if implementation.wrapper or implementation.hookwrapper:
        raise PluginError(f"hook {hook!r} is a wrapper; netcore's hooks take plain implementations")


def _validation(trial: pluggy.PluginManager, error: pluggy.PluginValidationError) -> str:
    """Say what is wrong, with the nearest right name or signature."""
    unknown = [hook for hook in vars(trial.hook) if not hook.startswith("_") and hook not in HOOKS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], HOOKS, n=1)
        return f"unknown hook {unknown[0]!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    said = " ".join(str(error).split())
    for hook in HOOKS:
        if f"hook '{hook}'" in said:
            function = getattr(spec, hook)
            said += f"; its arguments are {tuple(inspect.signature(function).parameters)}"
    return said


def _offers(group: Group, hooks: Mapping[str, pluggy.HookImpl]) -> Mapping[str, type[Any]]:
    if group.hook not in hooks:
        return {}
    result: Any = hooks[group.hook].function()
    if not isinstance(result, list | tuple):
        raise PluginError(f"hook {group.hook!r} must return a list of classes, not {result!r:.80}")
    offers: dict[str, type[Any]] = {}
    for item in result:
        name = _check_offer(group, item)
        if name in offers and offers[name] is not item:
            raise PluginError(f"hook {group.hook!r} offers the {group.noun} {name!r} twice")
        offers[name] = item
    return MappingProxyType(offers)


def _check_offer(group: Group, item: object) -> str:
    """Check one offered class against its contract and return its name."""
    if not isinstance(item, type):
        raise PluginError(f"hook {group.hook!r} must return classes, but {item!r:.80} is none")
    shown = f"{group.noun} {item.__module__}.{item.__qualname__}"
    _check_base(group, item, shown)
    name = getattr(item, group.attribute, None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"{shown} needs a class attribute {group.attribute!r}, a str; it is {name!r}")
    if group is ADAPTERS:
        _check_config(item, name, shown)
        _check_capabilities(item, shown)
        _check_calls(item, shown)
    return name


def _check_base(group: Group, item: type, shown: str) -> None:
    from netcore.contracts.adapter import Adapter
    from netcore.contracts.policies import BackpressurePolicy, ScalingPolicy

    if group is FILTERS:
        lacking = [m for m in ("matches", "to_json", "from_json") if not callable(getattr(item, m, None))]
        if lacking:
            raise PluginError(f"{shown} lacks {', '.join(lacking)}: see netcore.EventFilter")
        return
    bases: dict[str, type] = {
        ADAPTERS.hook: Adapter,
        BACKPRESSURE.hook: BackpressurePolicy,
        SCALING.hook: ScalingPolicy,
    }
    base = bases[group.hook]
    if not issubclass(item, base):
        raise PluginError(f"{shown} must inherit from netcore.{base.__name__}")
    if lacking := sorted(getattr(item, "__abstractmethods__", ())):
        raise PluginError(f"{shown} does not implement {', '.join(lacking)}")
    for method in ("on_full", "decide"):
        if inspect.iscoroutinefunction(getattr(item, method, None)):
            raise PluginError(f"{shown}: {method} is async, but it is called and not awaited")


def _check_config(item: type, kind: str, shown: str) -> None:
    config = getattr(item, "Config", None)
    if not (isinstance(config, type) and issubclass(config, AdapterConfig)):
        raise PluginError(f"{shown} needs a class attribute 'Config', a subclass of netcore.AdapterConfig")
    if config.__struct_config__.tag_field != "kind" or config.__struct_config__.tag != kind:
        raise PluginError(
            f"{shown} has the kind {kind!r}, but its Config the tag {config.__struct_config__.tag!r}: "
            f'write class {config.__name__}(netcore.AdapterConfig, frozen=True, tag="{kind}")'
        )


def _check_calls(item: type, shown: str) -> None:
    """Refuse what can be right in no way; whether a plain function returns an awaitable, its call tells."""
    from netcore.contracts.answers import ASYNC_CALLS

    for name in ASYNC_CALLS:
        call = getattr(item, name)
        if not callable(call) and not hasattr(call, "__get__"):
            raise PluginError(f"{shown}: {name} must be a method, made with `async def`, not {call!r:.80}")
        code = getattr(call, "__code__", None)
        awaitable = code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE  # types.coroutine
        if inspect.isasyncgenfunction(call) or (inspect.isgeneratorfunction(call) and not awaitable):
            raise PluginError(
                f"{shown}: {name} is a generator, but it is awaited: make it `async def` without `yield`"
            )
    for name in ("identity", "stats"):
        if inspect.iscoroutinefunction(getattr(item, name)):
            raise PluginError(f"{shown}: {name} is async, but it is called and not awaited: use a plain def")


def _check_capabilities(item: type, shown: str) -> None:
    from netcore.contracts.adapter import Capabilities

    given = getattr(item, "capabilities", None)
    if not isinstance(given, Capabilities | property):
        raise PluginError(f"{shown}: capabilities must be a netcore.Capabilities(...), not {given!r:.80}")
