"""The command line: one file a noun. Speaks to the HTTP API only, so that whatever it can do, a program can too.

Data goes to standard output (``--json`` for programs), messages to standard error. Exit codes: 0 done, 1 failed,
2 wrong use, 3 no such thing, 4 not allowed, 5 conflict, 6 unreachable or too busy.
"""
