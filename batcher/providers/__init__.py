"""Those who answer: one protocol, one pool, one map of faults."""
