"""`netcore mesh`: keys for a mesh, and a look at a running one."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

__all__ = ["mesh"]


@click.group()
def mesh() -> None:
    """Keys for a mesh, and a look at a running one."""


@mesh.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def keygen(path: Path) -> None:
    """Write a new secret key to PATH (mode 0600) and its public key to PATH.pub."""
    from net_adapter_mesh.security import write_key_pair

    try:
        public = write_key_pair(path)
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename or path}: {error.strerror}") from error
    click.echo(f"secret key: {path} (keep it to this node)")
    click.echo(f"public key: {public} (for authorized_keys and peers)")


@mesh.command()
@click.argument("address")
@click.option("--name", default="net", show_default=True, help="The mesh's name.")
@click.option("--secret-key-file", type=click.Path(path_type=Path), help="This side's secret key.")
@click.option("--public-key", default="", help="The node's public key; needed with a secret key.")
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--json", "as_json", is_flag=True, help="Print the member records as JSON.")
def status(
    address: str, name: str, secret_key_file: Path | None, public_key: str, timeout: float, as_json: bool
) -> None:
    """Ask the node at ADDRESS (tcp://host:port) who is in its mesh and what they hold."""
    from net_adapter_mesh.config import MeshConfig, Peer
    from net_adapter_mesh.probe import probe
    from net_adapter_mesh.security import load_keys
    from netcore import NetcoreError

    try:
        config = MeshConfig(
            name=name,
            peers=[Peer(address=address, public_key=public_key)],
            secret_key_file=str(secret_key_file) if secret_key_file else None,
        )
        records = probe(name, address, load_keys(config), public_key, timeout)
    except NetcoreError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(msgspec.json.encode([msgspec.structs.asdict(record) for record in records]).decode())
        return
    heads: dict[str, int] = {}
    for record in records:
        for row in record.lanes:
            heads[row.origin] = max(heads.get(row.origin, 0), row.head)
    for record in sorted(records, key=lambda record: record.node):
        where = record.address or "does not listen"
        click.echo(f"{record.node}  {where}  links: {', '.join(record.links) or 'none'}")
        for row in record.lanes:
            behind = heads[row.origin] - row.head
            lag = f", {behind} behind" if behind else ""
            click.echo(f"    {row.origin}: entries to {row.head}{lag}")
