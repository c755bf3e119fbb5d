"""Operations on a finished run: disable or drop entries, export the model."""
