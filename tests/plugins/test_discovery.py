from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from netcore import PluginNotFoundError
from netcore.plugins.manager import PluginInfo, PluginManager, default_manager, manager_for

Site = Any  # the fixture's class lives in a conftest, which is not importable


def info(manager: PluginManager, name: str) -> PluginInfo:
    return next(plugin for plugin in manager.plugins() if plugin.name == name)


def test_installed_plugin_sound_is_loaded_with_its_metadata(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """A plugin is listed with distribution, version, hooks and what it provides."""
    site.install("acme-policy", "acme", policy_source("acme"), version="2.5")
    manager = site.manager()
    assert info(manager, "acme") == PluginInfo(
        name="acme",
        distribution="acme-policy",
        version="2.5",
        hooks=("netcore_backpressure_policies",),
        provides=("backpressure policy acme",),
    )
    assert manager.registry.backpressure("acme").name == "acme"


def test_builtins_come_through_the_same_hooks(site: Site) -> None:
    """The core's own adapters and policies are one plugin among others, listed first."""
    first = site.manager().plugins()[0]
    assert (first.name, first.distribution, first.error) == ("netcore", "netcore-bus", "")
    assert "adapter memory" in first.provides
    assert "backpressure policy drop_oldest" in first.provides
    assert "scaling policy utilization" in first.provides


def test_import_netcore_loads_no_plugin() -> None:
    """Importing the package looks for nothing: plugins load when somebody asks."""
    code = (
        "import sys, netcore, netcore.plugins.manager as m;"
        "assert m._default is None;"
        "bad = [n for n in sys.modules if n.endswith('.plugin') or n.startswith('net_')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


BROKEN = {
    "import-error": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "raises": ("raise RuntimeError('boom at import')", "RuntimeError: boom at import"),
    "syntax": ("def broken(:", "SyntaxError"),
    "exits": ("import sys; sys.exit('leaving')", "SystemExit: leaving"),
    "no-hooks": ("x = 1", "implements no hook"),
    "misspelt": (
        "import netcore\n@netcore.hookimpl\ndef netcore_adapter(): return []",
        "unknown hook 'netcore_adapter'; did you mean 'netcore_adapters'",
    ),
    "unmarked": ("def netcore_adapters(): return []", "'netcore_adapters' is not marked"),
    "signature": (
        "import netcore\n@netcore.hookimpl\ndef netcore_bus_closed(bus, rapport): pass",
        r"rapport.*its arguments are \('bus', 'report'\)",
    ),
    "async": (
        "import netcore\n@netcore.hookimpl\nasync def netcore_bus_opened(bus): pass",
        "'netcore_bus_opened' is async",
    ),
    "async-generator": (
        "import netcore\n@netcore.hookimpl\nasync def netcore_bus_opened(bus): yield",
        "'netcore_bus_opened' is async",
    ),
    "wrapper": (
        "import netcore\n@netcore.hookimpl(wrapper=True)\ndef netcore_adapters():\n    return (yield)",
        "is a wrapper",
    ),
    "hook-raises": (
        "import netcore\n@netcore.hookimpl\ndef netcore_filters(): raise KeyError('gone')",
        "KeyError: 'gone'",
    ),
    "not-a-list": (
        "import netcore\n@netcore.hookimpl\ndef netcore_filters(): return None",
        "must return a list of classes, not None",
    ),
    "generator": (
        "import netcore\n@netcore.hookimpl\ndef netcore_filters(): yield int",
        "must return a list of classes, not <generator",
    ),
    "not-a-class": (
        "import netcore\n@netcore.hookimpl\ndef netcore_filters(): return ['jsonpath']",
        "must return classes, but 'jsonpath' is none",
    ),
    "not-an-adapter": (
        "import netcore\n@netcore.hookimpl\ndef netcore_adapters(): return [int]",
        "adapter builtins.int must inherit from netcore.Adapter",
    ),
    "capabilities-not-built": (
        (
            "import netcore\nfrom netcore.builtin.noop import NoopAdapter\n"
            "class A(NoopAdapter): capabilities = netcore.Capabilities\n"
            "@netcore.hookimpl\ndef netcore_adapters(): return [A]"
        ),
        r"capabilities must be a netcore.Capabilities\(...\), not <class",
    ),
    "not-a-filter": (
        "import netcore\n@netcore.hookimpl\ndef netcore_filters(): return [int]",
        "filter builtins.int lacks matches, to_json, from_json",
    ),
    "abstract-policy": (
        (
            "import netcore\nclass P(netcore.ScalingPolicy): name = 'p'\n"
            "@netcore.hookimpl\ndef netcore_scaling_policies(): return [P]"
        ),
        "does not implement decide",
    ),
    "async-policy": (
        (
            "import netcore\nclass P(netcore.ScalingPolicy):\n    name = 'p'\n"
            "    async def decide(self, stats): return netcore.NoChange()\n"
            "@netcore.hookimpl\ndef netcore_scaling_policies(): return [P]"
        ),
        "decide is async",
    ),
    "nameless-policy": (
        (
            "import netcore\nclass P(netcore.BackpressurePolicy):\n"
            "    def on_full(self, shard): return netcore.Verdict.EVICT\n"
            "@netcore.hookimpl\ndef netcore_backpressure_policies(): return [P]"
        ),
        "needs a class attribute 'name', a str; it is None",
    ),
    "offered-twice": (
        (
            "import netcore\n"
            "def make():\n"
            "    class P(netcore.BackpressurePolicy):\n"
            "        name = 'p'\n"
            "        def on_full(self, shard): return netcore.Verdict.EVICT\n"
            "    return P\n"
            "@netcore.hookimpl\ndef netcore_backpressure_policies(): return [make(), make()]"
        ),
        "offers the backpressure policy 'p' twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_reported_with_its_cause_and_stops_nothing(
    case: str, site: Site, policy_source: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with a plugin, its distribution, version and cause are told; others load."""
    source, cause = BROKEN[case]
    site.install("broken-one", "broken", source, version="0.3")
    site.install("acme-policy", "acme", policy_source("acme"))
    manager = site.manager()
    with caplog.at_level(logging.WARNING, "netcore.plugins"):
        broken = info(manager, "broken")
    assert (broken.distribution, broken.version, broken.provides) == ("broken-one", "0.3", ())
    assert re.search(cause, broken.error), broken.error
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "plugin 'broken' of broken-one 0.3 did not load"
    ]
    assert manager.registry.backpressure("acme").name == "acme"
    assert "memory" in manager.registry.adapter("memory").kind


ADAPTER = """
import netcore
{config}
class A(netcore.Adapter):
    {attributes}
    async def open(self, context): ...
    async def append(self, batch): ...
    async def streams(self): return []
    async def read(self, stream, after, limit, snapshot=None): ...
    async def bounds(self, stream): ...
    async def close(self): ...
@netcore.hookimpl
def netcore_adapters():
    return [A]
"""
CONFIG = 'class C(netcore.AdapterConfig, tag="a"): pass'
INCOMPLETE = {
    "no-kind": ADAPTER.format(config=CONFIG, attributes="Config = C"),
    "no-config": ADAPTER.format(config="", attributes="kind = 'a'"),
    "config-not-ours": ADAPTER.format(config="", attributes="kind = 'a'; Config = dict"),
    "tag-differs": ADAPTER.format(
        config="class C(netcore.AdapterConfig): pass", attributes="kind = 'a'; Config = C"
    ),
}
CAUSES = {
    "no-kind": "needs a class attribute 'kind', a str; it is None",
    "no-config": "needs a class attribute 'Config'",
    "config-not-ours": "needs a class attribute 'Config'",
    "tag-differs": r"has the kind 'a', but its Config the tag 'C': write class C\(.*tag=\"a\"\)",
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_adapter_class_incomplete_is_reported(case: str, site: Site) -> None:
    """An adapter needs its kind, and settings that carry that kind as their tag."""
    site.install("incomplete", "a", INCOMPLETE[case])
    manager = site.manager()
    with pytest.raises(PluginNotFoundError, match=CAUSES[case]):
        manager.registry.adapter("a")
    assert info(manager, "a").error


def test_failed_plugin_is_tried_again_and_success_is_kept(site: Site) -> None:
    """Only successes are remembered: a transient failure heals at the next ask."""
    site.install(
        "flaky-one",
        "flaky",
        """
        import os, netcore
        if not os.path.exists(__file__ + ".mended"):
            raise OSError("share not mounted")
        @netcore.hookimpl
        def netcore_bus_opened(bus): pass
        """,
        module="made_up_flaky",
    )
    manager = site.manager()
    assert info(manager, "flaky").error == "OSError: share not mounted"
    (site.folder / "made_up_flaky.py.mended").touch()
    manager.load()
    assert info(manager, "flaky").error == ""
    (site.folder / "made_up_flaky.py.mended").unlink()
    manager.load()
    assert info(manager, "flaky").error == ""


def test_failure_repeated_is_logged_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A plugin that stays broken does not fill the log."""
    site.install("broken-one", "broken", "raise RuntimeError('boom')")
    manager = site.manager()
    with caplog.at_level(logging.WARNING, "netcore.plugins"):
        for _ in range(3):
            manager.load()
    assert len(caplog.records) == 1


def test_plugin_installed_later_is_found_when_asked_for(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """A package installed while the process runs is found without a restart."""
    manager = site.manager()
    with pytest.raises(PluginNotFoundError):
        manager.registry.backpressure("late")
    site.install("late-policy", "late", policy_source("late"))
    assert manager.registry.backpressure("late").name == "late"


def test_malformed_metadata_of_one_distribution_hides_no_other(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """One unreadable entry_points.txt is reported; the others' plugins load."""
    site.metadata("mangled", "[netcore]\nno equals sign here\n")
    site.metadata("absent-module", "[netcore]\nabsent = made_up_no_such_module\n")
    site.metadata("bad-value", "[netcore]\nbad = 1 + 1\n")
    site.install("acme-policy", "acme", policy_source("acme"))
    manager = site.manager()
    errors = {plugin.name: plugin.error for plugin in manager.plugins()}
    assert "malformed" in errors["?"]
    assert "made_up_no_such_module" in errors["absent"]
    assert errors["bad"]
    assert errors["acme"] == ""


def test_entry_point_name_shared_by_two_distributions_is_reported_on_both(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """Neither shadows the other silently: both load, and each is told about its namesake."""
    site.install("first-one", "same", policy_source("one"), version="1.1")
    site.install("second-one", "same", policy_source("two"), version="2.2")
    manager = site.manager()
    errors = {p.distribution: p.error for p in manager.plugins() if p.name == "same"}
    assert errors == {
        "first-one": "the entry point name 'same' is also used by second-one 2.2",
        "second-one": "the entry point name 'same' is also used by first-one 1.1",
    }
    assert manager.registry.backpressure("one").name == "one"
    assert manager.registry.backpressure("two").name == "two"


def test_allow_list_excludes_all_others_before_import(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """NETCORE_PLUGINS loads what it names and imports nothing else."""
    site.install("acme-policy", "acme", policy_source("acme"))
    site.install("other-policy", "other", "import made_up_sentinel_never_imported")
    manager = site.manager(NETCORE_PLUGINS=" acme ,")
    assert info(manager, "acme").disabled == ""
    assert (info(manager, "other").disabled, info(manager, "other").error) == ("NETCORE_PLUGINS", "")
    assert "made_up_other_policy" not in sys.modules


def test_allow_list_empty_excludes_every_plugin(site: Site, policy_source: Callable[[str], str]) -> None:
    """NETCORE_PLUGINS set to nothing leaves the built-ins alone."""
    site.install("acme-policy", "acme", policy_source("acme"))
    manager = site.manager(NETCORE_PLUGINS="")
    assert info(manager, "acme").disabled == "NETCORE_PLUGINS"
    assert manager.registry.adapter("memory").kind == "memory"


def test_allow_list_with_a_slip_says_so(site: Site) -> None:
    """A name in NETCORE_PLUGINS that nobody installed is reported."""
    assert "no installed distribution" in info(site.manager(NETCORE_PLUGINS="acmee"), "acmee").error


def test_deny_list_excludes_before_import(site: Site) -> None:
    """NETCORE_PLUGINS_DISABLE keeps a plugin from being imported at all, and asking for it says why."""
    site.install("bad-one", "bad", "raise SystemExit('must not run')")
    manager = site.manager(NETCORE_PLUGINS_DISABLE="bad")
    assert info(manager, "bad").disabled == "NETCORE_PLUGINS_DISABLE"
    with pytest.raises(PluginNotFoundError, match=r"bad-one 1.0 would, but NETCORE_PLUGINS_DISABLE"):
        manager.registry.adapter("bad")


def test_load_from_many_threads_imports_each_plugin_once(site: Site) -> None:
    """However many threads ask first, a plugin's module runs once and all see it."""
    site.install(
        "counted-one",
        "counted",
        """
        import time, netcore
        with open(__file__ + ".runs", "a") as log:
            log.write("x")
        time.sleep(0.05)  # widens the window in which others might start it too
        @netcore.hookimpl
        def netcore_bus_opened(bus): pass
        """,
        module="made_up_counted",
    )
    manager = site.manager()
    seen: list[int] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(10)
        manager.load()
        seen.append(len(manager.observers("netcore_bus_opened")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [1] * 8
    assert (site.folder / "made_up_counted.py.runs").read_text() == "x"


def test_plugin_that_asks_for_names_while_imported_does_not_recurse(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """A plugin may look names up at import; it sees what is there, and loading goes on."""
    site.install(
        "nosy-one",
        "nosy",
        """
        import netcore, made_up_hook
        made_up_hook.manager.registry.adapter("memory")
        @netcore.hookimpl
        def netcore_bus_opened(bus): pass
        """,
    )
    site.install("zz-policy", "zz", policy_source("zz"))
    (site.folder / "made_up_hook.py").write_text("manager = None\n")
    import made_up_hook  # type: ignore[import-not-found]

    made_up_hook.manager = site.manager()
    assert info(made_up_hook.manager, "nosy").error == ""
    assert made_up_hook.manager.registry.backpressure("zz").name == "zz"


def test_manager_for_no_plugins_is_the_processs_own() -> None:
    """Without plugins of its own a bus shares the process's manager: nothing is built."""
    assert manager_for() is default_manager()
