"""What is done with a finished run: take entries back, export the model."""
