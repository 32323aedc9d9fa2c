"""The contract between devices and the controller: the only thing the two sides share.

Invariant: everything here turns values into bytes and back, and says no with a reason. Nothing here knows a
socket, a file, a clock or a key store. The prose is `SPEC.md`; docstrings cite its clauses as "wire 3.2".
"""
