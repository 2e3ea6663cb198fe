"""Blocks of `curate`, one file each."""
