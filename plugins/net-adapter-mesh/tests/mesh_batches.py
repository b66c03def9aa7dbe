"""Batches straight into a mesh adapter of this process, and what it then holds."""

from netcore import Batch, Stream


def batch_of(first_seq, *payloads, shard=0):
    """Return one producer's batch, its timestamps rising from 1,000 ns."""
    stamps = list(range(1000 + first_seq, 1000 + first_seq + len(payloads)))
    return Batch(producer="p" * 32, shard=shard, first_seq=first_seq, stamps=stamps, payloads=list(payloads))


async def stored(adapter, shard=0, origin=None):
    """Return the first 100 payloads of a stream, of the adapter's own by default."""
    page = await adapter.read(Stream(shard, origin or adapter.origin), None, 100)
    return [event.raw for event in page.events]
