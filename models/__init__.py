"""Methods: detectors, their hyperparameters and their building blocks."""
