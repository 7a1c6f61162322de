"""From the lines of a job file to jobs, in the order in which they should run."""
