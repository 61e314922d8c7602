"""sampan carries big open models to small devices."""
