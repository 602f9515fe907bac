"""A model's answers about files: tables on the screen, visualizations, CSV and JSON."""
