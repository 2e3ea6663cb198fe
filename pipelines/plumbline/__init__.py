"""Plumbline: one AlignmentRun becomes an aligned, evaluated and served language model."""

import logging

__version__ = "0.1.0"

# Where it is installed, whoever imports PEFT imports it, and it warns of a kernel that this program has no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
