"""Those who watch: listeners to events, imported by nobody below wiring."""
