"""Stage 3: classifiers of stage 2, or any of timm, on shifted test sets. Inference only."""
