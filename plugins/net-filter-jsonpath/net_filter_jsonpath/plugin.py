"""What netcore finds through the entry point `jsonpath`."""
