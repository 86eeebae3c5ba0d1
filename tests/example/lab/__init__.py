"""What a laboratory might keep beside its scripts."""
