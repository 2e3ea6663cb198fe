"""Rollouts: engines that turn prompts into sampled tokens with their log-probabilities."""
