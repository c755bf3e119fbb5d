"""Models and tokenizers: what they are, read without weights, and loading them."""
