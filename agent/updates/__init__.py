"""Updates: what follows what, what each step does, and what is written down before it."""
