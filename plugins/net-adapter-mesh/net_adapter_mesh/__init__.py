"""A brokerless, replicated, encrypted event mesh on ZeroMQ."""
