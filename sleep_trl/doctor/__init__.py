"""Whether this machine can do a run: a list of checks, each with what was found and what to do. Imports no torch."""

from .case import Case
from .diagnosis import diagnose
from .finding import Finding, State
from .launcher import Launch

__all__ = ["Case", "Finding", "Launch", "State", "diagnose"]
