"""Detectors on the features of a convolutional network. Nothing here loads torch before a detector is used."""
