"""Images with boxes, grounding sheets and curves."""
