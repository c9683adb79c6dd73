"""Code that all training loops share: data order, learning rate schedule, logging, processes, randomness."""
