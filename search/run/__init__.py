"""Running trials and confirm runs on Ray."""
