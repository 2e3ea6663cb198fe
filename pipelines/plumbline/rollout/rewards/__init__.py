"""Rewards: what answers are worth. Verifiable ones are functions; models and endpoints are asked; `scorer` does all of a run's."""
