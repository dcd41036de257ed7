"""The playground: a model in a browser, on this machine."""
