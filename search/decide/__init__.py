"""What is tried next, what is stopped, what is confirmed: Optuna, and neither Ray nor images."""
