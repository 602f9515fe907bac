"""A trained model on new pictures and texts; its answers as cards, files and tables."""
