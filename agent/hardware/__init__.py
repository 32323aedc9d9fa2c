"""What this machine is: probed under a root directory, matched to a profile, told with its evidence."""

from agent.hardware.description import describe

__all__ = ["describe"]
