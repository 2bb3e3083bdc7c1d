"""`optimize:` of model-config.yaml: makes any handler's model faster, and checks that its answers stay the same."""
