"""The HTML report of a night: one self-contained file."""

from .page import write_report

__all__ = ["write_report"]
