"""Read and write files safely: atomic replacement, remote file systems, pickles of arrays without code."""
