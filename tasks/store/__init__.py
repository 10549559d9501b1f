"""Keep images in one Arrow file: decoded once from raw archives, cached by content, served as a pool of classes."""
