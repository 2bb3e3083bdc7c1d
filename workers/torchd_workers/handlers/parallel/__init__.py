"""Models larger than one device: a model split over the ranks of its worker."""
