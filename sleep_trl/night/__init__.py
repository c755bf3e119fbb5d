"""One night, phase by phase. Start reading at run.py."""
