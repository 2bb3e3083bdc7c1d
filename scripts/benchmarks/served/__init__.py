"""What the archives of scripts/bench hold: they serve in torchd and in TorchServe as they are."""
