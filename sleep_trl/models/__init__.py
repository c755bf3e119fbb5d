"""Loading models and tokenizers, and inspecting checkpoints without loading weights."""
