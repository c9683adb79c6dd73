"""Stage 2: downstream tasks. Fine-tuning, probes and retrieval on labelled images, semantic segmentation on images with
masks."""
