from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
import pytest

from netcore import Adapter, AdapterConfig, ConfigError, PluginNotFoundError, hookimpl
from netcore.plugins.manager import PluginManager
from netcore.plugins.settings import adapter_config

Site = Any


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verify: bool = True


class ShopConfig(AdapterConfig, tag="shop", frozen=True):
    url: str = "shop://localhost"
    port: int = 1
    password: int = 0
    nodes: tuple[int, ...] = ()
    pay: Literal["cash", "card"] | None = None
    tls: Tls = Tls()

    def __post_init__(self) -> None:
        if self.port == 13:
            raise ConfigError(f"port 13 is unlucky for {self.url}")


class StrictConfig(AdapterConfig, tag="strict", frozen=True):
    url: str


class ShopAdapter(Adapter[ShopConfig]):
    kind: ClassVar[str] = "shop"
    Config: ClassVar[Any] = ShopConfig

    async def open(self, context: Any) -> None: ...
    async def append(self, batch: Any) -> None: ...
    async def streams(self) -> list[Any]:
        return []

    async def read(self, stream: Any, after: Any, limit: int, snapshot: Any = None) -> Any: ...
    async def bounds(self, stream: Any) -> Any: ...
    async def close(self) -> None: ...


class StrictAdapter(ShopAdapter):
    kind: ClassVar[str] = "strict"
    Config: ClassVar[Any] = StrictConfig


class Shop:
    @hookimpl
    def netcore_adapters(self) -> list[type[Adapter[Any]]]:
        return [ShopAdapter, StrictAdapter]


@pytest.fixture
def manager(site: Site) -> PluginManager:
    return PluginManager(plugins=[Shop()], base=site.manager())


@pytest.mark.parametrize(
    "setting",
    [
        "shop",
        {"kind": "shop"},
        {"kind": "shop", "port": "1", "tls": {"verify": "true"}},
        ShopConfig(),
    ],
)
def test_adapter_config_every_form_gives_the_typed_config(setting: Any, manager: PluginManager) -> None:
    """A kind, a table (numbers and booleans as text too, as the environment gives them) and an object."""
    assert manager.adapter_config(setting) == ShopConfig()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"kind": "shop", "prot": 1}, r"unknown key 'prot'; did you mean 'port'\? \(it has: url, port"),
        ({"kind": "shop", "tls": {"verfy": 1}}, r"unknown key 'tls.verfy'"),
        ({"kind": "shop", "port": "many"}, r"adapter 'shop': port: Expected `int`, got `str`: 'many'"),
        ({"kind": "shop", "nodes": [1, "x"]}, r"nodes\[1\]: Expected `int`, got `str`: 'x'"),
        ({"kind": "shop", "pay": "gold"}, r"shop': pay must be one of 'cash', 'card', not 'gold'"),
        ({"kind": "shop", "port": 13}, r"adapter 'shop': port 13 is unlucky for shop://localhost"),
        ({"kind": "strict"}, r"missing required field `url`"),
        ("strict", r"missing required field `url`"),
        ({"port": 1}, r"adapter needs a 'kind' .* it has: port"),
        ({}, r"it has: nothing"),
        ({"kind": 5}, r"adapter needs a 'kind'"),
        (7, r"adapter must be a kind .* not int"),
        (None, r"not NoneType"),
        (ShopAdapter, r"not ABCMeta"),
    ],
)
def test_adapter_config_wrong_names_key_and_value(setting: Any, said: str, manager: PluginManager) -> None:
    """Each mistake is answered with the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=said):
        manager.adapter_config(setting)


def test_adapter_config_of_another_adapter_is_refused(manager: PluginManager) -> None:
    """A config object whose tag names one adapter and whose class is another's is a slip."""

    class Impostor(AdapterConfig, tag="shop", frozen=True): ...

    with pytest.raises(
        ConfigError, match=r"Impostor is not the settings of the adapter 'shop'; .*ShopConfig"
    ):
        manager.adapter_config(Impostor())


def test_adapter_config_of_an_unknown_kind_says_what_to_install(manager: PluginManager) -> None:
    """The table of an adapter that is not installed names the package."""
    with pytest.raises(PluginNotFoundError, match="pip install net-adapter-redis"):
        manager.adapter_config({"kind": "redis", "url": "redis://localhost"})


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "shop", "password": "s3cret"},
        {"kind": "shop", "port": 13, "url": "shop://me:s3cret@host/x"},
        {"kind": "shop", "port": "shop://me:s3cret@host"},
        {"kind": "shop", "port": {"api_key": "s3cret", "more": {"token": "s3cret"}}},
        {"kind": "shop", "port": "shop://host?access_token=s3cret"},
    ],
)
def test_adapter_config_error_shows_no_credential(setting: Any, manager: PluginManager) -> None:
    """Messages go to logs and tickets: what looks like a credential is masked in them."""
    with pytest.raises(ConfigError) as caught:
        adapter_config(manager.registry, setting)
    assert "s3cret" not in str(caught.value)
    assert "***" in str(caught.value)
