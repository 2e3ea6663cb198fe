"""Stored model outputs and judgments, and what they are worth: files in, scores of items out, no model asked."""
