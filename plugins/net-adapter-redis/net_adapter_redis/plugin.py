"""What netcore finds through the entry point `redis`."""
