"""Built-in adapters and policies, registered through the same hooks as anyone else's."""
