"""Placing a sweep on machines."""
