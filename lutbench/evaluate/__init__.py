"""What a model does on every image of a dataset, and how sure a number is."""
