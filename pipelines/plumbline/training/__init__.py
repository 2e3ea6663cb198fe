"""Training: pure objectives and batches, one engine for all of them, one loop. `ray.py` is the only file that knows Ray."""
