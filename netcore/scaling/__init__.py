"""Changing the number of shards: `resharding` does it, `monitor` decides when."""
