"""Layers: one file each. A layer says how it computes, how gradients pass back through it, and why."""
