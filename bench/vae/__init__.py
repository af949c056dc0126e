"""A hierarchical VAE that is not CAREamics', on the functions: an example that trains, beside plain PyTorch."""
