"""Stage 3: evaluate classifiers of stage 2, or of timm, on shifted test sets. Inference only."""
