"""Statistics: numpy arrays in, estimates with intervals out. Loads without torch."""
