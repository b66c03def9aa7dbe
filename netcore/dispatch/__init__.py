"""Ring to adapter: `batcher` cuts batches, `dispatcher` gets them stored."""
