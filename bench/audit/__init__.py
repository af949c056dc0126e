"""What the GPU kernels cost, found out without a GPU: `make audit`, `make hostcost`."""
