"""The sources of the demonstration model `paraphrase`, and what packs them."""
