"""Provide what models learn from: task sources, and the stores, class pools and samplers they are made of.

Reading order:

- `types`: the types that everything else uses (Episode, TaskDistribution, TaskSource).
- `random`: numbers addressed by (seed, stream, index).
- `few_shot`: N-way K-shot episodes from any pool of classes.
- `sources.strokes`: a source without any files.
- `store.store`, `store.class_pool`: images in one memory-mapped file, and a split of it as a pool of classes.
- `store.archive`, `store.decoding`, `store.cache`, `sources.omniglot`: from a raw archive to a store, once.
- `store.store_cache`: the same if the archive or the cache is behind a URI, such as in S3.
- `registry`: names for sources.
- `io`, `plugins`: safe files and a user's own classes; the packages above use these and `random` too.

This package imports none of the others.
"""
