"""A brokerless, replicated, encrypted event mesh on ZeroMQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from net_adapter_mesh.config import MeshConfig, Peer

if TYPE_CHECKING:
    from net_adapter_mesh.adapter import MeshAdapter

__version__ = "0.1.0"
__all__ = ["MeshAdapter", "MeshConfig", "Peer"]


def __getattr__(name: str) -> Any:
    """Load the adapter, and with it ZeroMQ, on first use."""
    if name == "MeshAdapter":
        from net_adapter_mesh.adapter import MeshAdapter

        return MeshAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
