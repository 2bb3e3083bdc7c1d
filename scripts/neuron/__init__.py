"""BERT on AWS Inferentia and Trainium, or on any machine with the same fixed shapes: trace, serve, infer, benchmark."""
