"""The networks of the paper: Class Encoder, diffusion backbones, adaptation, sampling, classifier."""
