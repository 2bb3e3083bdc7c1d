"""What clients speak to: gRPC and REST. A surface only translates; decisions are made below."""
