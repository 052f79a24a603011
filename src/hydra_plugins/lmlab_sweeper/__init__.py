"""Where Hydra looks for plugins: the sweeper's door. The engine is lmlab.sweeps."""
