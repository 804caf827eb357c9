"""What the training layers share: configs, run folders, metrics, checkpoints, seeds."""
