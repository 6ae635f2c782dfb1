"""Detectors around exported models, on small models made here."""
