"""Training and prediction of the real LadderVAE, upstream's blocks and ours: `make train`."""
