"""Every setting of the suite, each with its default and where that comes from."""
