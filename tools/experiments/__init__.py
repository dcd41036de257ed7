"""Experiments: trainings that compare models, options, data and sizes in bits per byte."""
