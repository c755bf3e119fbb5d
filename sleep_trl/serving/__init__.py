"""An OpenAI-compatible endpoint for the newest committed model, which switches to each new night without downtime.

The entry point is `server`. `model_server` runs in its own process and imports none of the other modules.
"""
