"""The PyTorch backend: transformers' own models, hooked; CPU and CUDA."""
