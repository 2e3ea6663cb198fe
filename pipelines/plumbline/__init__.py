"""Plumbline: one AlignmentRun becomes an aligned, evaluated and served language model."""

__version__ = "0.1.0"
