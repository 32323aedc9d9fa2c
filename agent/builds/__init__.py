"""Builds on this device: how their files come here, where they lie, which ones are installed and active."""
