"""The published adapter contract, on a single node."""

import pytest
from net_adapter_mesh import MeshAdapter, MeshConfig

from netcore import AdapterRefusedError, ReadRequest, Stream
from netcore.testing.contract import AdapterContract, Writer, adapter_context, drain


class OneOrigin(MeshAdapter):
    """A node whose own streams go by their shard alone, as the contract suite names them."""

    def _out(self, stream):
        return Stream(stream.shard, self.origin)

    async def streams(self):
        return [Stream(stream.shard) for stream in await super().streams()]

    async def read(self, stream, after, limit, snapshot=None):
        return await super().read(self._out(stream), after, limit, snapshot)

    async def read_many(self, requests, snapshot=None):
        found = [ReadRequest(self._out(request.stream), request.after, request.limit) for request in requests]
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
    foreign_positions = ("-1", "1-0", "1.5", "x", "\u0661", "9" * 30)

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


class TestMeshDurable(TestMeshInMemory):
    """A node with its log on disk."""

    backends = ("asyncio",)

    @pytest.fixture
    def make_adapter(self, tmp_path):
        """Build nodes without peers, each in a directory of its own."""

        def make(directory="log", **overrides):
            settings = {"timeout_ms": 30_000, **overrides}  # a busy disk may take seconds to sync
            return OneOrigin(MeshConfig(log=str(tmp_path / directory), **settings))

        return make

    async def test_identity_names_the_store_and_no_address(self, open_adapter):
        """Every node of a mesh has the mesh's identity, on whatever log."""
        one, two = await open_adapter(), await open_adapter(directory="other")
        assert one.identity() == two.identity() == "mesh:net"

    async def test_another_adapter_on_the_store_reads_the_same(self, open_adapter, make_adapter):
        """A directory has one node at a time: a second is refused and harms nothing."""
        one = await open_adapter()
        writer = Writer(one)
        await writer.write([b"1"])
        two = make_adapter()
        with pytest.raises(AdapterRefusedError, match="in use by another process"):
            await two.open(adapter_context())
        await writer.write([b"2"])
        assert [event.raw for event in await drain(one)] == [b"1", b"2"]
