"""Releases brought to the fleet in stages, and back again."""
