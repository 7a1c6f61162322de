"""Which job goes next, and when."""
