"""Run a suite as jobs of a SLURM cluster, through submitit."""
