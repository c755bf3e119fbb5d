"""What a night will do, worked out and checked before any weight is loaded."""
