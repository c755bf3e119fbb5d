"""`python -m sleep_trl.cli`: the same as `sleep-trl`."""

from .app import main

if __name__ == "__main__":
    main()
