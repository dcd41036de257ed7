"""Trainings that compare models, options, data and sizes."""
