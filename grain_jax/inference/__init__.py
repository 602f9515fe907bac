"""A trained model on new images and texts; its answers as cards, files and tables."""
