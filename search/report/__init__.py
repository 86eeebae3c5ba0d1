"""The report of a sweep: one page that shows what people would rather look at than read."""

from anomtune.search.report.page import write_report

__all__ = ["write_report"]
