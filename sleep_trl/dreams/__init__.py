"""Dreams: what the model writes for itself, how it is chosen, tried out and rewarded."""
