"""The load driver: how fast a run is on this machine, what it costs, and how that compares."""
