"""Commands: one thing to do now, once (wire 4.9)."""
