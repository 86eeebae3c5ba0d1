"""Hyperparameter search for visual anomaly detection on a Ray cluster."""

import pkgutil

# Python started in a checkout finds this folder before an installed anomtune.
__path__ = pkgutil.extend_path(__path__, __name__)
