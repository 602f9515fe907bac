"""What a prepared split holds, measured in one pass: counts, lengths, boxes, duplicates."""
