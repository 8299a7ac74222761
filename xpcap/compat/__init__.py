"""Other people's names for the same functions."""
