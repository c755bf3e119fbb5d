"""From documents to the rows of training: reading, windows, prompts, what the teacher writes."""
