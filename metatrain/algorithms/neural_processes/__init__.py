"""Neural processes: read the support set in one pass, and predict a density for each query's value."""
