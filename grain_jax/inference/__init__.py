"""A trained model on new images and texts; its answers as images, files and tables."""
