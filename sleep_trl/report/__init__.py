"""The report of a night: one page that is readable without a network."""

from .page import write_report

__all__ = ["write_report"]
