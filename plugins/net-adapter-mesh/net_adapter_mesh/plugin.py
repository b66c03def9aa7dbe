"""What netcore finds through the entry point `mesh`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netcore import hookimpl

if TYPE_CHECKING:
    import click

    from netcore import Adapter


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer the adapter of kind `mesh`."""
    from net_adapter_mesh.adapter import MeshAdapter

    return [MeshAdapter]


@hookimpl
def netcore_commands(cli: click.Group) -> None:
    """Add `netcore mesh ...`."""
    from net_adapter_mesh.cli import mesh

    cli.add_command(mesh)
