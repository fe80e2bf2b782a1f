"""Training, sampling and evaluation of models built from components."""
