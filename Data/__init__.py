"""The data of the paper: real splits, cached latents, synthetic datasets."""
