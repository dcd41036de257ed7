"""New images, sounds and texts from a model."""
