"""Blocks of `synthesize`: who answers, how calls are made, and one block per method."""
