"""NATS JetStream adapter."""
