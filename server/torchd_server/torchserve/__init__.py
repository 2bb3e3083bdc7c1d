"""TorchServe's files and words: its configuration, its sentences, the shapes of its JSON documents."""
