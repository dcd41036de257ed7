"""Durable files, tars, and the objects of a local or remote store."""
