from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netcore import BackpressurePolicy, FullShard, PluginError, PluginNotFoundError, Verdict, hookimpl
from netcore.plugins.manager import PluginManager

Site = Any


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [("mesh", "net-adapter-mesh"), ("redis", "net-adapter-redis"), ("jetstream", "net-adapter-jetstream")],
)
def test_adapter_official_and_absent_says_what_to_install(kind: str, distribution: str, site: Site) -> None:
    """A kind that this project publishes is answered with the command that installs it."""
    with pytest.raises(PluginNotFoundError, match=rf"adapter '{kind}': pip install {distribution}$"):
        site.manager().registry.adapter(kind)


def test_filter_official_and_absent_says_what_to_install(site: Site) -> None:
    """So is the filter language behind `netcore.Filter`."""
    with pytest.raises(PluginNotFoundError, match=r"filter 'jsonpath': pip install net-filter-jsonpath$"):
        site.manager().registry.filter("jsonpath")


def test_adapter_unknown_lists_known_and_close_ones(site: Site) -> None:
    """A slip is answered with what is near and what there is."""
    with pytest.raises(PluginNotFoundError) as caught:
        site.manager().registry.adapter("redsi")
    said = str(caught.value)
    assert "did you mean 'redis'?" in said
    assert "known: memory, noop, mesh (pip install net-adapter-mesh)" in said


def test_adapter_name_not_a_str_is_refused(site: Site) -> None:
    """A kind of another type is not looked up."""
    with pytest.raises(PluginNotFoundError, match="adapter: the name must be a str, not 3"):
        site.manager().registry.adapter(3)


def test_adapter_whose_official_plugin_failed_shows_the_cause(site: Site) -> None:
    """Installed but broken is another story than not installed: the real cause is shown and chained."""
    site.install("net-adapter-redis", "redis", "import hiredis_that_is_not_there", version="9.9")
    with pytest.raises(
        PluginNotFoundError, match=r"net-adapter-redis 9.9 failed to load: ModuleNotFoundError: No module"
    ) as caught:
        site.manager().registry.adapter("redis")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_name_unknown_mentions_plugins_that_failed(site: Site) -> None:
    """A broken plugin of another name may be the one that would provide it."""
    site.install("acme-things", "things", "raise RuntimeError('boom')")
    with pytest.raises(PluginNotFoundError, match=r"acme-things 1.0 failed to load, which may be why"):
        site.manager().registry.scaling("acme")


def test_name_claimed_by_two_distributions_is_an_error_naming_both(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """It is raised when that name is asked for, by no other, and shown beside both plugins."""
    site.install("first-one", "first", policy_source("same"), version="1.1")
    site.install("second-one", "second", policy_source("same"), version="2.2")
    site.install("third-one", "third", policy_source("other"))
    manager = site.manager()
    assert manager.registry.backpressure("other").name == "other"
    with pytest.raises(PluginError, match=r"'same' is claimed by first-one 1.1 and by second-one 2.2"):
        manager.registry.backpressure("same")
    errors = {p.name: p.error for p in manager.plugins()}
    assert errors["first"] == "backpressure policy 'same' is also claimed by second-one 2.2"
    assert errors["second"] == "backpressure policy 'same' is also claimed by first-one 1.1"
    assert errors["third"] == ""


def test_builtin_name_claimed_by_a_plugin_is_an_error_naming_both(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """The built-ins have no precedence: a stranger's `block` never takes effect unnoticed."""
    site.install("strange-one", "strange", policy_source("block"))
    manager = site.manager()
    with pytest.raises(PluginError, match=r"'block' is claimed by netcore-bus .* and by strange-one 1.0"):
        manager.registry.backpressure("block")


def test_same_class_offered_by_two_plugins_is_no_conflict(site: Site) -> None:
    """A plugin that is installed and also registered in code does not fight itself."""

    class Spare(BackpressurePolicy):
        name = "spare"

        def on_full(self, shard: FullShard, /) -> Verdict:
            return Verdict.DISCARD

    class One:
        @hookimpl
        def netcore_backpressure_policies(self) -> list[type[BackpressurePolicy]]:
            return [Spare]

    class Two(One): ...

    manager = PluginManager(plugins=[One(), Two()], base=site.manager())
    assert manager.registry.backpressure("spare") is Spare
    assert all(plugin.error == "" for plugin in manager.plugins())
