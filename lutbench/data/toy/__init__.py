"""Small datasets of photographs that ship inside scikit-image and scikit-learn; nothing is downloaded."""
