"""Keep images in one Arrow file: from raw archives, decoded once, cached by content, served as a pool of classes."""
