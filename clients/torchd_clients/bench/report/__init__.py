"""The report of a measurement: the files of TorchServe's benchmark suite, pictures and a page."""
