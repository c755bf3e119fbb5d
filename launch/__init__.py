"""Jobs to be started by `accelerate launch`, or from Python by their `main`."""
