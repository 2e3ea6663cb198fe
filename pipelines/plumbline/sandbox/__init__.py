"""A sandbox for Python that nobody has read: programs, and answers under test. Linux; the standard library only."""

from plumbline.sandbox.run import Outcome, require, run_python, run_tests, supported

__all__ = ["Outcome", "require", "run_python", "run_tests", "supported"]
