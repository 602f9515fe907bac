"""The page of `evaluate report`: result files and single answers as HTML, Markdown or CSV."""
