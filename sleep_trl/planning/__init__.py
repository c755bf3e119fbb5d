"""What a night will do, derived and checked before any weight is loaded."""
