"""From documents to training rows: reading, windows, prompts, samples and their filters."""
