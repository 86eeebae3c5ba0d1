"""A local web page that follows a sweep while it runs, and shows it when it has ended."""

from anomtune.search.watch.server import watch

__all__ = ["watch"]
