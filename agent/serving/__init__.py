"""muster-serving: the process that answers inference requests on a device.

Invariant: it serves what is loaded without the agent, the controller or the network, and survives their ends. Does not
fetch, judge or trust builds: the agent hands it directories of builds that are already trusted.
"""
