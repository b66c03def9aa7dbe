"""The reference pages name everything there is: a page that lags behind the code fails here."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import click
import msgspec
import pytest

import netcore
from netcore.builtin.memory import MemoryConfig
from netcore.builtin.utilization import UtilizationPolicy
from netcore.cli.app import BUILT_IN, app
from netcore.plugins import spec
from netcore.plugins.manager import PluginManager, default_manager
from netcore.plugins.registry import BACKPRESSURE, SCALING
from netcore.plugins.vetting import HOOKS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_heading_with_its_exact_signature(hook: str) -> None:
    """`docs/reference/hooks.md` has a heading with the hook's signature, letter for letter."""
    signature = str(inspect.signature(getattr(spec, hook))).replace("'", "")
    assert f"\n## `{hook}{signature}`\n" in page("hooks.md")


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_test_of_its_own(hook: str) -> None:
    """Every hook is tried on a real bus or command line, by a test named after it."""
    tests = (ROOT / "tests" / "plugins" / "test_hooks.py").read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def test_hook_{hook}\b", tests, re.MULTILINE)


@pytest.mark.parametrize(
    "config", [netcore.EventBusConfig, netcore.BatchConfig, netcore.ScalingConfig, MemoryConfig]
)
def test_settings_are_all_listed_with_their_defaults(config: type[msgspec.Struct]) -> None:
    """Every field has a row that shows its default."""
    shown = page("config.md")
    for field in msgspec.structs.fields(config):
        rows = re.findall(rf"^\|.*`{field.name}` \|.*$", shown, re.MULTILINE)
        assert rows, field.name
        if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
            default = field.default
            expected = f'"{default}"' if isinstance(default, str) else repr(default)
            assert any(f"| `{expected}` |" in row for row in rows), f"{field.name}: {expected}"


def test_built_in_policies_are_all_listed_with_their_options() -> None:
    """Every policy that comes with the core has a row, and each option of the scaling policy its default."""
    shown = page("config.md")
    table = shown.partition("## Backpressure policies")[2].partition("\n## ")[0]
    own = PluginManager(discover=lambda: (), environ={}).registry
    assert own.names(BACKPRESSURE) == sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert own.names(SCALING) == ["utilization"]
    for name, option in inspect.signature(UtilizationPolicy).parameters.items():
        assert f"\n| `{name}` | `{option.default}` |" in shown, name


def test_errors_are_all_listed_with_their_builtins() -> None:
    """Every public error has a row that names the builtin it also is."""
    shown = page("errors.md")
    for name in netcore.__all__:
        value = getattr(netcore, name) if name not in ("Filter", "FilterBuilder") else None
        if isinstance(value, type) and issubclass(value, netcore.NetcoreError) and name != "NetcoreError":
            row = re.search(rf"^\| `{name}` \|([^|]*)\|", shown, re.MULTILINE)
            assert row, name
            builtins = {b.__name__ for b in value.__bases__ if b.__module__ == "builtins"}
            assert set(re.findall(r"`(\w+)`", row[1])) == builtins, name


def test_commands_and_options_are_all_listed() -> None:
    """Every command has a heading, every option is named in the page."""
    shown = page("cli.md")
    context = click.Context(app)
    for name in BUILT_IN:
        command = app.get_command(context, name)
        assert command is not None
        assert f"## `netcore {name}" in shown
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in shown, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize("kind", ["memory", "redis", "jetstream", "mesh"])
def test_guarantees_say_of_each_adapter_what_its_class_says(kind: str) -> None:
    """The table of capabilities in `docs/explanation/guarantees.md` is the classes' own."""
    text = (ROOT / "docs" / "explanation" / "guarantees.md").read_text(encoding="utf-8")
    head = re.search(r"^\| capability \|(.*)\|$", text, re.MULTILINE)
    assert head
    column = [cell.strip(" `") for cell in head[1].split("|")].index(kind)
    capabilities = default_manager().registry.adapter(kind).capabilities
    for name in ("durable", "shared", "watermark"):
        row = re.search(rf"^\| `{name}`[^|]*\|(.*)\|$", text, re.MULTILINE)
        assert row
        cell = row[1].split("|")[column].strip()
        assert cell.startswith("yes" if getattr(capabilities, name) else "no"), f"{name} of {kind}: {cell}"


def test_pages_link_to_what_exists() -> None:
    """Relative links between the documents lead somewhere."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += ROOT.glob("plugins/*/README.md")
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in pages
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_readme_is_short_and_begins_with_its_two_commands() -> None:
    """At most 150 lines; the first two code blocks are one shell line each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks[:2]] == ["sh", "sh"]
    assert [block.count("\n") for _, block in blocks[:2]] == [1, 1]
    assert blocks[0][1].rstrip().endswith("netcore demo")
    assert "pytest" in blocks[1][1]


def test_readme_shows_its_parts_in_order() -> None:
    """What it is for, in three sentences; then the commands, the snippet, plugins, an adapter, guarantees, links."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    purpose = re.search(r"\A# netcore\n\n(.+?)\n\n", text, re.DOTALL)
    assert purpose
    assert len(re.findall(r"[.!?](?=\s|\Z)", purpose[1])) == 3
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "The four operations",
        "Plugins",
        "Your own adapter, in 30 lines",
        "What is guaranteed",
        "Documentation",
    ]
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"\b(?:await )?bus\.(\w+)\(|EventBus\.(open)\(", parts["The four operations"])) >= {
        ("", "open"), ("ingest", ""), ("ingest_raw", ""), ("poll", ""), ("shutdown", ""),
    }  # fmt: skip
    code = re.search(
        r"^```python\n(.*?)^```", parts["Your own adapter, in 30 lines"], re.MULTILINE | re.DOTALL
    )
    assert code
    (adapter,) = [node for node in ast.parse(code[1]).body if getattr(node, "name", "") == "ListAdapter"]
    lines = code[1].splitlines()[adapter.lineno - 1 : adapter.end_lineno]
    assert len([line for line in lines if line.strip()]) <= 30
    assert len(re.findall(r"\]\(docs/", parts["Documentation"])) >= 10
