"""A page on which a person looks at annotations and decides, and what becomes of the decisions."""
