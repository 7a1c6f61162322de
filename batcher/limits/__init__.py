"""Everything that says "no" or "wait": pure, takes `now`, never awaits, never logs."""
