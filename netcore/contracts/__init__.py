"""What plugins implement. Import these names from `netcore`."""
