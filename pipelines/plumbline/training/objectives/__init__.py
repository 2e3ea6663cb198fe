"""Objectives, one file each: pure functions `(log-probs [N], batch) → (loss sum, normaliser, metrics)`."""
