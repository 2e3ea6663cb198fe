"""Releases: a new model takes the place of the one that serves, step by step, guarded by figures of live requests."""
