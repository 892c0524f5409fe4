"""The networks: blocks and U-Nets. Knows no diffusion."""
