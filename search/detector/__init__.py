"""One detector: opened, trained, saved, loaded, used, exported. Neither Ray nor Optuna."""
