"""How class texts and images make scores."""
