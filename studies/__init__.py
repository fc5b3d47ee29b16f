"""What is said about diffusion transformers, measured: one script a claim, each writing a JSON file and a plot."""
