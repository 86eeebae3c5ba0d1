"""Datasets of visual anomaly detection: categories of images, honest splits, a per-node cache."""
