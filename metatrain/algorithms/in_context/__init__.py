"""Methods that read the labelled support set and a query with one network, and take no gradient in a test."""
