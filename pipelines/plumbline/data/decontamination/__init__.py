"""Decontamination: which rows hold questions of benchmarks, and which questions are held by rows."""
