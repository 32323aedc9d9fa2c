"""The agent's side of the serving process: starts or adopts it, speaks to it, tries builds in a child.

Invariant: serving outlives the agent. Nothing here imports an engine or any part of serving.
"""
