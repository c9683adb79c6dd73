"""What the stages share: recipes, runs, records, training helpers, encoders, data and the command line."""

__version__ = "0.1.0"
