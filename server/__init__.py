"""The strong side: recovers, classifies, asks for more."""
