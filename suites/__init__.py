"""Suite files: everything that a reader needs to know of what one command runs. Shipped in the wheel."""
