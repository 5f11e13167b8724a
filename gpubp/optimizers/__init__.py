"""Optimizers: one file each, over the flat parameter buffer."""
