"""Stage: train one U-Net of the cascade, elastically, on Ray Train."""
