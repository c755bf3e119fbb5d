"""An OpenAI-compatible endpoint over the newest committed model, which goes over to a new night's without a gap.

`server` is where it begins; `model_server` is run in a process of its own and imports none of the rest.
"""
