"""Figures of image scores and of anomaly maps."""
