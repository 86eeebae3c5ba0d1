"""The drawn scenes of the synthetic dataset."""
