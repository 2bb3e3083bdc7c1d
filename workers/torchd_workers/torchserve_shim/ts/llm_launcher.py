"""TorchServe: ts/llm_launcher.py."""

from torchd_workers.torchserve.llm_launcher import create_mar_file, get_model_config, main, parser

__all__ = ["create_mar_file", "get_model_config", "main", "parser"]

if __name__ == "__main__":
    main(parser().parse_args())
