"""Stage 2: what an encoder is worth. Fine-tuning, linear probe and k-nearest neighbours on labelled images, semantic
segmentation on images with masks."""
