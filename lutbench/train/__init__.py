"""What training loops share: which images make a step, the schedule, the log, processes, randomness."""
