"""Redis Streams adapter."""
