"""Models of other libraries as methods: what `anomtune.models.anomalib` is made of."""
