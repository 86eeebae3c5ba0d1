"""The sweep directory: storage, its lock, its records."""
