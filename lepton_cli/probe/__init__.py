"""What is seen inside a model while it runs on data: the floor below pruning and quantization."""
