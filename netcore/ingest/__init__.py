"""Producer to ring: `clock` stamps, `router` picks, `ring` keeps, `shard` ties one ring to its worker."""
