"""An OpenAI-compatible endpoint over the newest committed model, which goes over to a new night's without a gap."""

from ..committed import Committed, newest
from .server import Endpoint, ServeOptions, serve

__all__ = ["Committed", "Endpoint", "ServeOptions", "newest", "serve"]
