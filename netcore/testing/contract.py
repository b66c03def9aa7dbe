"""The adapter contract as a test suite. Subclass it, say how to make an adapter, run pytest.

    class TestMyAdapter(AdapterContract):
        @pytest.fixture
        def make_adapter(self, tmp_path):
            def make(**overrides):
                return MyAdapter(MyConfig(path=str(tmp_path / "store"), **overrides))
            return make

`make_adapter` returns a callable that builds an adapter and does not open it. All that it builds
within one test name the same store, which is empty when the test begins; different tests have
different stores. Some clauses have two of them open at once. `overrides` are settings of the
adapter's config.

Switches, as class attributes or methods to override:

- `backends`: the event loops to run on, default `("asyncio",)`; also `"trio"`.
- `shares_store`: whether two adapters on one store see each other; default: `capabilities.shared`.
- `exclusive`: whether a store lets one adapter at a time have it open, and `open` of a second one
  raises an `AdapterError`; default False.
- `retention`: settings under which old events are trimmed after at most 3,000 later ones, e.g.
  `{"max_events": 50}`; None (the default) skips the clauses on gaps.
- `max_payload`: largest payload to try, default 1 MiB.
- `poison()`: a payload that the adapter can never store; default: one longer than
  `capabilities.max_payload_bytes`, if that is set.
- `patience_s`: seconds that a prompt call may take on a slow machine, default 5.
- `foreign_positions`: further texts that `read` must refuse with `CursorError`, e.g. positions of
  another adapter.
- the fixture `outage`: how to make the backend unreachable; see `ContractBase.outage`.

A clause that an adapter's capabilities or switches rule out is skipped, with the reason.
"""

from __future__ import annotations

from netcore.testing._base import ContractBase, MakeAdapter, Writer, adapter_context, drain
from netcore.testing._lifecycle import LifecycleClauses
from netcore.testing._payloads import PayloadClauses
from netcore.testing._reading import ReadingClauses
from netcore.testing._storing import StoringClauses

__all__ = ["AdapterContract", "ContractBase", "MakeAdapter", "Writer", "adapter_context", "drain"]


class AdapterContract(StoringClauses, ReadingClauses, PayloadClauses, LifecycleClauses):
    """Everything that `netcore.Adapter` demands of an adapter; see the module."""
