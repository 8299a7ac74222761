"""Training: the loop, its schedule and events, validation, and the solver of the course."""
