"""From a model to stages on devices: measured calls, a plan of :mod:`search.partitioning`, real stages."""
