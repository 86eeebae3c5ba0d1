"""The loops in which detectors are trained."""
