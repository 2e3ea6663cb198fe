"""Curation: formats, reading, normalising, deduplicating, the data card. `ray.py` is the only file that imports Ray."""
