"""What to learn from: task sources, and the stores, pools and samplers they are made of.

Reading order:

- `types`: the words in which everything else speaks (Episode, TaskDistribution, TaskSource).
- `randomness`: numbers addressed by (seed, stream, index).
- `few_shot`: N-way K-shot episodes out of any pool of classes.
- `strokes`: a source without any files, drawn as it is needed.
- `store`, `pool`: images in one memory-mapped file, and a split of it as a pool of classes.
- `archive`, `cache`, `omniglot`: from a raw archive to a store, once.
- `places`, `stored`: the same where the archive or the cache lies elsewhere, such as in S3.
- `catalogue`, `gallery`: names for sources, and pictures of episodes.

This package imports nothing else of ours.
"""
