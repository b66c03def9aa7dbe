"""NATS JetStream adapter for netcore: atomic, idempotent batches and pages at full speed.

EventBusConfig(adapter=JetStreamConfig(url="nats://127.0.0.1:4222"))
"""

from __future__ import annotations

from net_adapter_jetstream.adapter import JetStreamAdapter
from net_adapter_jetstream.config import JetStreamConfig

__version__ = "0.1.0"

__all__ = ["JetStreamAdapter", "JetStreamConfig"]
