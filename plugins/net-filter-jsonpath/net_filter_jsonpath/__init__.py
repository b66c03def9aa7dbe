"""JSON path equality filters."""
