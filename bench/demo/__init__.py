"""One training of each, side by side on a page: `make demo`."""
