"""Losses: one file each. The factor 1/N lives here and nowhere else; a loss's gradient is that of its own value."""
