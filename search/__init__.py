"""Sweeps: what is searched, how trials run, and what comes of them."""
