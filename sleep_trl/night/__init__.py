"""One night, phase by phase; run.py is the place to start reading."""
