"""Ways to run a whole job file."""
