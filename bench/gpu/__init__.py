"""All that needs a GPU, in one script: `bench/gpu/run.sh`."""
