"""Files, tars, caches and remote stores."""
