"""What authors of methods and datasets run in their own tests."""

from anomtune.datasets.testing import check_dataset
from anomtune.models.testing import check_detects, check_memory, check_method

__all__ = ["check_dataset", "check_detects", "check_memory", "check_method"]
