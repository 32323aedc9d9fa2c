"""A refresh in a process of its own: `python -m agent.trust.child`, a Request on standard input, an Answer on output.

Invariant: prints one line of JSON and ends with 0 when there is an answer, good or bad; ends by itself when its time is
over, also when whoever started it is gone. Keeps nothing but what is in the metadata's directory.
"""

from __future__ import annotations

import math
import resource
import signal
import sys
import time
from pathlib import Path

import msgspec

from agent.trust.protocol import MAX_REQUEST_BYTES, Failure, Request
from agent.trust.updater import answer


def main() -> int:
    """Answer one request and return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(MAX_REQUEST_BYTES), type=Request)
    signal.alarm(math.ceil(request.deadline) + 2)
    if request.memory_bytes > 0:
        _limit_memory(request.memory_bytes)
    try:
        result = answer(request, time.time())
    except MemoryError:
        result = Failure(
            code="no_memory", message="the metadata takes more memory than allowed; split it into hash bins"
        )
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    return 0


def _limit_memory(more: int) -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            limit = 1024 * int(line.split()[1]) + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
