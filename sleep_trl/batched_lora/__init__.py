"""Many isolated LoRAs trained together over one frozen model, and answered by together."""
