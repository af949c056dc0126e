"""The stochastic step of every provider on every case, checked and timed: `make bench`."""
