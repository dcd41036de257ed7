"""The trainer under DeepSpeed, and all that only training needs."""
