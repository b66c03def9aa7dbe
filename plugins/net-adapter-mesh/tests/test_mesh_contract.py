"""The published adapter contract, on a single node."""

import pytest
from net_adapter_mesh import MeshAdapter, MeshConfig

from netcore import ReadRequest, Stream
from netcore.testing.contract import AdapterContract


class OneOrigin(MeshAdapter):
    """A node whose own streams go by their shard alone, as the contract suite names them."""

    def _out(self, stream):
        return Stream(stream.shard, self.origin)

    async def streams(self):
        return [Stream(stream.shard) for stream in await super().streams()]

    async def read(self, stream, after, limit, snapshot=None):
        return await super().read(self._out(stream), after, limit, snapshot)

    async def read_many(self, requests, snapshot=None):
        found = [ReadRequest(request.stream, request.after, request.limit) for request in requests]
        return await super().read_many(found, snapshot)

    async def bounds(self, stream):
        return await super().bounds(self._out(stream))

    async def seek(self, stream, ts):
        return await super().seek(self._out(stream), ts)

    async def wait(self, positions, timeout):
        await super().wait({self._out(stream): at for stream, at in positions.items()}, timeout)


class TestMeshInMemory(AdapterContract):
    """A node with its log in memory."""

    backends = ("asyncio", "trio")
    shares_store = False  # two nodes share by being linked, not by naming a store
    retention = {"max_events": 50}  # noqa: RUF012 # a switch of the kit, read only
    foreign_positions = ("-1", "1-0", "1.5", "x", "١", "9" * 30)

    @pytest.fixture
    def make_adapter(self):
        """Build nodes without peers."""

        def make(**overrides):
            return OneOrigin(MeshConfig(**overrides))

        return make

    async def test_identity_names_the_store_and_no_address(self, open_adapter):
        """Every node of a mesh has the mesh's identity: a cursor is good at each."""
        one, two, other = await open_adapter(), await open_adapter(), await open_adapter(name="other")
        assert one.identity() == two.identity() == "mesh:net"
        assert other.identity() == "mesh:other"
